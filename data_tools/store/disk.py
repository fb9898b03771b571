"""Writing files that users ask for, with the disk's refusals in a sentence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mvlm.errors import UserError
from mvlm.runtime.storage import NO_ROOM, write_durably

ELSEWHERE = "work on a copy of it elsewhere"
"""What else can be done if a corpus is changed in place."""


@contextmanager
def writing(out: Path, otherwise: str = "give another --out") -> Iterator[None]:
    """Turn the disk's refusals into a sentence, which says what else can be done."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(f"No room to write {out} ({error.strerror}): free space or {otherwise}.") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{out} cannot be written ({error.strerror}): {otherwise}.") from None
        raise


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file, and make its folder; raises `UserError` if the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
