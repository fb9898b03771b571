"""Pictures with names, asked for one that looks the same."""

from __future__ import annotations

import os
import tempfile
from array import array
from itertools import combinations
from pathlib import Path

import numpy as np

from .look import LOOK, read_look, same_picture

DISTANCE = 11
"""Bits in which two hashes of 64 may differ; beyond it the index would look at too many places."""

CORNERS = 40
"""Levels by which the mean colour of a quarter may differ, so that the thumbnail need not be read."""

MOST_COMPARED = 64
"""Candidates that are compared, the nearest in their quarters' colours first: white pages are like each other by the
thousand."""

BLOCK_BITS = 16


class NearHashes:
    """A set of 64-bit hashes asked for those within a Hamming distance; 24 bytes a hash and never a full scan.

    Hashes are filed by each of their four 16-bit blocks: of two at most d apart, some block differs in d // 4 bits
    at most, so that it is enough to look there.
    """

    def __init__(self, distance: int = DISTANCE) -> None:
        self._distance = distance
        self._hashes = array("Q")
        self._filed: list[dict[int, array[int]]] = [{} for _ in range(64 // BLOCK_BITS)]
        reach = distance * BLOCK_BITS // 64
        self._flips = [sum(1 << bit for bit in bits) for n in range(reach + 1) for bits in combinations(range(16), n)]

    def add(self, value: int) -> None:
        for filed, block in zip(self._filed, _blocks(value), strict=True):
            filed.setdefault(block, array("I")).append(len(self._hashes))
        self._hashes.append(value)

    def near(self, value: int) -> np.ndarray:
        """The numbers of those within the distance, in the order in which they were added."""
        found = [
            np.frombuffer(filed[block ^ flip], np.uint32)
            for filed, block in zip(self._filed, _blocks(value), strict=True)
            for flip in self._flips
            if block ^ flip in filed
        ]
        if not found:
            return np.empty(0, np.uint32)
        candidates = np.unique(np.concatenate(found))
        apart = np.bitwise_count(np.frombuffer(self._hashes, np.uint64)[candidates] ^ np.uint64(value))
        return candidates[apart <= self._distance]


def _blocks(value: int) -> list[int]:
    return [value >> shift & (1 << BLOCK_BITS) - 1 for shift in range(0, 64, BLOCK_BITS)]


class Spill:
    """Bytes by number, in a file without a name, of which nothing is left however this process ends."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lasts as long as this
        self._ends = array("Q", [0])

    def add(self, content: bytes) -> int:
        self._file.write(content)
        self._file.flush()
        self._ends.append(self._ends[-1] + len(content))
        return len(self._ends) - 2

    def read(self, number: int) -> bytes:
        start, end = self._ends[number], self._ends[number + 1]
        return os.pread(self._file.fileno(), end - start, start)


class PictureIndex:
    """Thumbnails and names lie in a file in `folder`; memory holds about 80 bytes a picture."""

    def __init__(self, folder: Path) -> None:
        self._rows = Spill(folder)
        self._hashes = NearHashes()
        self._corners = bytearray()

    def add(self, look: bytes, name: str) -> None:
        seen = read_look(look)
        for value in seen.hashes:
            self._hashes.add(value)
        self._corners += seen.corners.tobytes()
        self._rows.add(look + name.encode())

    def twin(self, look: bytes) -> str:
        """The name of one that looks the same, or ""; of several, of the nearest in colour, then the first."""
        mine = read_look(look)
        hashes = np.concatenate([self._hashes.near(value) for value in mine.hashes])
        found = np.unique(hashes // 2)  # of each picture there are two
        corners = np.frombuffer(self._corners, np.uint8).reshape(-1, 12)[found].astype(np.int16)
        apart = np.abs(corners - mine.corners).max(1, initial=0)
        for place in np.argsort(apart, kind="stable")[:MOST_COMPARED]:
            if apart[place] > CORNERS:
                break
            row = self._rows.read(int(found[place]))
            if same_picture(mine, read_look(row[: LOOK.size])):
                return row[LOOK.size :].decode()
        return ""
