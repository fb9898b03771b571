"""Files of a disk that grow by whole lines, or get another name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mvlm.runtime.storage import publish


def append_durably(path: Path, line: str) -> None:
    """Add whole lines to a file, synced; it is made where it is missing.

    A torn line before them goes, which would take the first of them with it.
    """
    drop_torn_line(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def link_or_copy(path: Path, name: Path) -> None:
    """Another name for a file, which nothing writes to any more; a synced copy where the file system has no such thing.

    Raises:
        FileNotFoundError: the file is not there.
    """
    try:
        os.link(path.resolve(), name)
    except FileNotFoundError:
        raise
    except OSError:
        partial = name.with_name(name.name + ".partial")
        shutil.copy2(path, partial)
        publish(partial, name)


def drop_torn_line(path: Path) -> None:
    """Take off a last line that a full disk or a power cut has left without its end."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            end -= 1
        file.truncate(end)
