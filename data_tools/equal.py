"""Rows that share a value with another, found by sorting, in memory that does not grow with their number."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

ENTRY = np.dtype([("first", "<u8"), ("last", "<u8"), ("place", "<u8")])
"""A value of 16 bytes, and its place."""

WORKING = 4
"""How many times its own bytes an entry takes while it is sorted."""

MOST_BUCKETS = 256


class EqualJoin:
    """Takes values with their places, then tells which places share a value with another.

    Entries are kept in files in `folder`, each of which holds values that begin alike and is sorted by itself.

    Args:
        rows: about how many there will be.
        memory: bytes.
    """

    def __init__(self, folder: Path, rows: int, memory: int) -> None:
        buckets = -(-rows * ENTRY.itemsize * WORKING // memory)
        self._bits = min(MOST_BUCKETS, max(1, buckets) - 1).bit_length()
        self._files = [tempfile.TemporaryFile(dir=folder) for _ in range(1 << self._bits)]  # noqa: SIM115  kept open

    def add(self, values: np.ndarray, places: np.ndarray) -> None:
        """
        Args:
            values: uint64 [n, 2], evenly spread, as hashes are.
            places: uint64 [n], all different.
        """
        entries = np.empty(len(values), ENTRY)
        entries["first"], entries["last"], entries["place"] = values[:, 0], values[:, 1], places
        if not self._bits:
            self._files[0].write(entries.tobytes())
            return
        bucket = entries["first"] >> np.uint64(64 - self._bits)
        for number in np.unique(bucket):
            self._files[number].write(entries[bucket == number].tobytes())

    def shared(self) -> np.ndarray:
        """The places that share a value with another, ascending; removes the files."""
        found = [np.empty(0, np.uint64)]
        for file in self._files:
            file.seek(0)
            found.append(_shared(np.frombuffer(file.read(), ENTRY)))
            file.close()
        return np.sort(np.concatenate(found))


def _shared(entries: np.ndarray) -> np.ndarray:
    """Compare the first halves of the values, which leaves few to compare in full."""
    near = entries[_repeated(np.argsort(entries["first"]), entries[["first"]])]
    return near["place"][_repeated(np.lexsort((near["last"], near["first"])), near[["first", "last"]])]


def _repeated(order: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The numbers of the entries that equal a neighbour when `order` sorts them by `keys`."""
    same = np.ones(max(0, len(order) - 1), bool)
    for name in keys.dtype.names or ():
        ordered = keys[name][order]
        same &= ordered[1:] == ordered[:-1]
    return order[np.append(same, False) | np.insert(same, 0, False)] if len(order) else order
