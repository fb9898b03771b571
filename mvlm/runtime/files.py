"""Appends whole lines to files on a disk, and gives files another name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mvlm.runtime.storage import publish


def append_durably(path: Path, line: str) -> None:
    """Append whole lines to a file, synced; the file is made if it is missing.

    A torn line at its end is dropped first, as it would spoil the first of them.
    """
    drop_torn_line(path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def link_or_copy(path: Path, name: Path) -> None:
    """Give another name to a file that nothing writes to any more, by a hard link or, if that fails, a synced copy.

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
    """Cut off a last line that a full disk or a power cut has left unfinished."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        file.truncate(end)
