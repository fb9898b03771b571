"""Pictures whose hashes differ in a few bits, found by sorting, in memory that does not grow with their number.

If two hashes differ in at most d bits and are cut into d + k blocks, at least k blocks are equal (Manku, Jain and
Das Sarma, "Detecting near-duplicates for web crawling", 2007). So for each choice of k blocks, the hashes are sorted by
these blocks and compared with their neighbours.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

DISTANCE = 5
"""Bits in which two hashes of 64 may differ."""

RUN = 8
"""Evenly spread hashes that may agree in the chosen blocks on average: the more hashes, the more blocks are chosen."""

MOST_BLOCKS = 4

WINDOW = 128
"""A hash is compared with at most so many that agree with it in the chosen blocks, the next in the order of their
colours: plain pictures resemble each other by the million."""

COLOUR_BITS, INDEX_BITS = 7, 28
"""The low bits of a sort key, below the chosen blocks."""

WORKING = 88
"""Bytes per hash that gathering and sorting take, measured together with what the allocator keeps."""

CHUNK = 1 << 14
BUCKETS = 64


class NearJoin:
    """Takes pictures with several hashes each, in the order of their places, then finds the pairs.

    Two pictures are a pair if the first hash of one is within `distance` bits of any hash of the other.
    """

    def __init__(self, folder: Path, memory: int, hashes: int, distance: int = DISTANCE) -> None:
        self._folder, self._memory, self._distance = folder, memory, distance
        self._entry = np.dtype(
            [("place", "<u8"), ("hashes", "<u8", (hashes,)), ("new", "?", (hashes,)), ("colour", "u1")]
        )
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  kept open
        self._count = 0

    def add(self, places: np.ndarray, hashes: np.ndarray, colours: np.ndarray) -> None:
        """
        Args:
            places: uint64 [n], ascending over all calls.
            hashes: uint64 [n, hashes].
            colours: [n], below 128, similar for similar pictures.
        """
        entries = np.empty(len(places), self._entry)
        entries["place"], entries["hashes"], entries["colour"] = places, hashes, colours
        for number in range(hashes.shape[1]):
            entries["new"][:, number] = (hashes[:, :number] != hashes[:, number, None]).all(1)
        self._file.write(entries.tobytes())
        self._count += len(entries)

    def pairs(self, known: int = 0, among: bool = True) -> PicturePairs:
        """
        Args:
            known: so many of the first pictures are not paired with each other.
            among: whether the others may be paired with each other.
        """
        self._file.flush()
        entries = np.memmap(self._file, self._entry, "r") if self._count else np.empty(0, self._entry)
        found = PicturePairs(self._folder, entries["place"])
        for table in _tables(entries["hashes"].size, self._distance):
            for firsts, seconds in self._agreeing(entries, table):
                wanted = (seconds >= known) & (among | (firsts < known))
                found.add(firsts[wanted], seconds[wanted])
        return found

    def _agreeing(self, entries: np.ndarray, table: BlockChoice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The numbers of pairs within the distance that agree in the blocks of a table, the smaller number first."""
        hashes = entries["hashes"].size
        passes = -(-hashes * WORKING // min(self._memory, WORKING << (INDEX_BITS - 1)))
        for turn in range(passes):
            keys, values, owners = self._gathered(entries, table, turn, passes)
            keys.sort()  # in place, like everything that takes memory per hash
            index = (keys & np.uint64((1 << INDEX_BITS) - 1)).astype(np.int64)
            keys >>= np.uint64(INDEX_BITS + COLOUR_BITS)
            at = np.flatnonzero(keys[1:] == keys[:-1])
            for step in range(1, WINDOW + 1):
                at = at[: np.searchsorted(at, len(keys) - step)]
                at = at[keys[at] == keys[at + step]]
                if not len(at):
                    break
                one, other = index[at], index[at + step]
                whole = (owners[one] | owners[other]) & np.uint64(1) == 1
                one, other = one[whole], other[whole]
                differ = values[one] ^ values[other]
                near = (np.bitwise_count(differ) <= self._distance) & table.is_first(differ)
                a, b = owners[one[near]] >> np.uint64(1), owners[other[near]] >> np.uint64(1)
                yield np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]

    def _gathered(
        self, entries: np.ndarray, table: BlockChoice, turn: int, passes: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The hashes whose turn it is: their sort keys, the hashes themselves, and the numbers of their pictures.

        The numbers are doubled, plus 1 for a picture's first hash.
        """
        keys, values, owners, count = [], [], [], 0
        for first in range(0, len(entries), CHUNK):
            chunk = entries[first : first + CHUNK]
            hashes = np.ascontiguousarray(chunk["hashes"])
            key = table.of(hashes)
            mine = chunk["new"] & (_spread(key) % np.uint64(passes) == turn) if passes > 1 else chunk["new"]
            picture, number = np.nonzero(mine)
            index = np.arange(count, count + len(picture), dtype=np.uint64)
            colour = chunk["colour"][picture].astype(np.uint64)
            keys.append((key[mine] << np.uint64(COLOUR_BITS) | colour) << np.uint64(INDEX_BITS) | index)
            values.append(hashes[mine])
            owners.append((picture + first).astype(np.uint64) << np.uint64(1) | (number == 0))
            count += len(picture)
        nothing = np.empty(0, np.uint64)
        return np.concatenate([nothing, *keys]), np.concatenate([nothing, *values]), np.concatenate([nothing, *owners])


class BlockChoice:
    """Some of the blocks between `cuts`, which are positions of bits."""

    def __init__(self, cuts: Sequence[int], chosen: Sequence[int]) -> None:
        self._cuts, self._chosen = cuts, chosen

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """The bits of these blocks, joined."""
        key = np.zeros_like(hashes)
        for number in self._chosen:
            key <<= np.uint64(self._cuts[number + 1] - self._cuts[number])
            key |= self._block(hashes, number)
        return key

    def is_first(self, differ: np.ndarray) -> np.ndarray:
        """Whether hashes that agree here agree in no earlier table, by the bits in which they differ."""
        others = (number for number in range(self._chosen[-1]) if number not in self._chosen)
        every = np.ones(differ.shape, bool)
        return np.logical_and.reduce([every, *(self._block(differ, number) > 0 for number in others)])

    def _block(self, hashes: np.ndarray, number: int) -> np.ndarray:
        start, end = self._cuts[number : number + 2]
        return (hashes >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)


def _tables(hashes: int, distance: int) -> Iterator[BlockChoice]:
    for chosen in range(1, MOST_BLOCKS + 1):
        blocks = distance + chosen
        if hashes <= RUN << (chosen * (64 // blocks)):
            break
    cuts = [64 * number // blocks for number in range(blocks + 1)]
    yield from (BlockChoice(cuts, numbers) for numbers in combinations(range(blocks), chosen))


def _spread(keys: np.ndarray) -> np.ndarray:
    """Numbers that depend on all bits of the keys."""
    return (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)


class PicturePairs:
    """Pairs of places, the smaller first, kept in files in `folder` by the larger one.

    Args:
        places: uint64, of all pictures, ascending.
    """

    def __init__(self, folder: Path, places: np.ndarray) -> None:
        self._places = places
        self._each = -(-len(places) // BUCKETS) or 1
        starts = range(0, len(places), self._each)
        self._starts = [int(places[start]) for start in starts]
        self._files = [tempfile.TemporaryFile(dir=folder) for _ in starts]  # noqa: SIM115  kept open
        self._loaded, self._held = -1, np.empty((0, 2), np.uint64)

    def add(self, firsts: np.ndarray, seconds: np.ndarray) -> None:
        """Add pairs of pictures by their numbers; a pair may be added more than once."""
        if not len(seconds):
            return
        order = np.argsort(seconds)
        found = np.stack([self._places[seconds[order]], self._places[firsts[order]]], 1)
        buckets, starts = np.unique(seconds[order] // np.uint64(self._each), return_index=True)
        for bucket, of_it in zip(buckets.tolist(), np.split(found, starts[1:]), strict=True):
            self._files[bucket].write(of_it.tobytes())

    def earlier(self, place: int) -> np.ndarray:
        """The smaller places, ascending, of the pairs whose larger one this is; quick if asked for in order."""
        bucket = bisect_right(self._starts, place) - 1
        if bucket < 0:
            return np.empty(0, np.uint64)
        if bucket != self._loaded:
            self._loaded, self._held = bucket, self._bucket(bucket)
        start, end = np.searchsorted(self._held[:, 0], np.array([place, place + 1], np.uint64))
        return self._held[start:end, 1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for bucket in range(len(self._files)):
            for second, first in self._bucket(bucket).tolist():
                yield first, second

    def places(self) -> np.ndarray:
        """All places that are in a pair, ascending."""
        parts = [np.unique(self._bucket(bucket)) for bucket in range(len(self._files))]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))

    def _bucket(self, number: int) -> np.ndarray:
        """uint64 [n, 2]: larger and smaller place, in order, each pair once."""
        file = self._files[number]
        file.seek(0)
        found = np.frombuffer(file.read(), np.uint64).reshape(-1, 2)
        found = found[np.lexsort((found[:, 1], found[:, 0]))]
        again = (found[1:] == found[:-1]).all(1)
        return found[np.append(True, ~again)] if len(found) else found
