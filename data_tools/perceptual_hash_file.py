"""A file of thumbnails with names, searched for one that shows the same."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .perceptual_hash import LOOK, SEEN, read_perceptual_hash, same_picture

CORNERS = 40
"""Levels by which the mean colours of quarters may differ; if they differ by more, thumbnails are not compared."""

MOST_COMPARED = 64
"""Most candidates compared, the nearest in their quarters' colours first: white pages resemble each other by the
thousand."""


class Spill:
    """Bytes by number, in an unnamed file that vanishes however this process ends."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it is kept open
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, content: bytes) -> int:
        self._file.write(content)
        self._file.flush()
        self._ends.append(self._ends[-1] + len(content))
        return len(self) - 1

    def read(self, number: int, most: int | None = None) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        return os.pread(self._file.fileno(), min(end - start, most or end), start)


class PerceptualHashFile:
    """Takes eight bytes per picture in memory; the rest is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._rows = Spill(folder)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, look: bytes, name: str) -> int:
        """Keep it, and return its number."""
        return self._rows.add(look + name.encode("utf-8", "replace"))

    def seen(self, start: int, end: int) -> np.ndarray:
        """What `SEEN` holds, for the pictures from `start` up to `end`."""
        return np.frombuffer(b"".join(self._rows.read(number, SEEN.itemsize) for number in range(start, end)), SEEN)

    def twin(self, look: bytes, numbers: Sequence[int]) -> str:
        """The name of one of these that shows the same, or ""; of several, the nearest in colour, then the first."""
        if not numbers:
            return ""
        mine = read_perceptual_hash(look)
        corners = np.concatenate([self.seen(number, number + 1)["corners"] for number in numbers])
        apart = np.abs(corners.astype(np.int16) - mine.corners).max(1)
        for place in np.argsort(apart, kind="stable")[:MOST_COMPARED]:
            if apart[place] > CORNERS:
                break
            row = self._rows.read(numbers[place])
            if same_picture(mine, read_perceptual_hash(row[: LOOK.size])):
                return row[LOOK.size :].decode()
        return ""
