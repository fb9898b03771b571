"""A file of JSON lines that another process, perhaps on another machine, appends to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

TAIL = 64 << 20
"""Bytes from the end of a file that are read at first; the longest runs have more."""


class JsonLinesTail:
    """Gives every whole line once. An unfinished last line is given once it is finished.

    Attributes:
        replaced: whether the last look found another file in place of the one before, which is then read instead.
    """

    def __init__(self, path: Path, tail: int = TAIL) -> None:
        self.path, self._tail = path, tail
        self._file, self._read = 0, 0  # its inode, and the bytes up to the end of the last whole line
        self.replaced = False

    def new(self) -> list[dict[str, Any]]:
        """The lines added since the last look; any that is no JSON object is left out."""
        try:
            with open(self.path, "rb") as file:
                return self._new(file)
        except OSError:  # not there yet, or out of reach for now
            self.replaced = False
            return []

    def _new(self, file: Any) -> list[dict[str, Any]]:
        facts = os.fstat(file.fileno())
        known = self._file != 0
        self.replaced = known and (facts.st_ino != self._file or facts.st_size < self._read)
        if self.replaced or not known:
            self._file, self._read = facts.st_ino, max(0, facts.st_size - self._tail)
            if self._read:
                file.seek(self._read)
                self._read += len(file.readline())
        file.seek(self._read)
        whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        return [found for line in whole.splitlines() if (found := json_object(line)) is not None]


def json_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that a text holds; None if it holds none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
