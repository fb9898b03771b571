"""Memory-mapped files and shared memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def mapped(file: int, shape: Sequence[int]) -> np.ndarray:
    """The memory behind a file descriptor as uint8 of that shape; it outlives the descriptor."""
    return np.frombuffer(mmap.mmap(file, int(np.prod(shape))), np.uint8).reshape(shape)


class MappedFile:
    """A file's bytes, which remain available while they are used, even if the file is removed.

    Attributes:
        data: read-only, uint8.
        written_ns: when it was last written, in nanoseconds.

    Raises:
        OSError, ValueError: it cannot be read, or is empty.
    """

    __slots__ = ("_inode", "_map", "_path", "_size", "data", "written_ns")

    def __init__(self, path: str | Path):
        self._path = path
        file = os.open(path, os.O_RDONLY)
        try:
            found = os.fstat(file)
            self._map = mmap.mmap(file, found.st_size, prot=mmap.PROT_READ)
        finally:
            os.close(file)
        self._inode, self.written_ns = found.st_ino, found.st_mtime_ns
        self.data, self._size = memoryview(self._map), found.st_size

    def find(self, wanted: bytes, start: int) -> int:
        """Where these bytes first begin at or after `start`; -1 if nowhere."""
        return self._map.find(wanted, start)

    def is_whole(self) -> bool:
        """Whether it has not been cut since: the kernel kills a process that reads a page that is gone."""
        return self._map.size() >= self._size

    def is_removed(self) -> bool:
        """Whether the file is gone from its path, so that only this mapping keeps it."""
        try:
            return os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return True
