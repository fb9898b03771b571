"""A set of integers in little more than one bit each, with fast access to its n-th member and the count below a bound.

Rank and select over blocks of 512 bits (Jacobson, "Space-efficient static trees and graphs", 1989): the members before
each block are counted once, which adds an eighth to the bits, and within a block Python counts bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

BLOCK = 512
"""Bits per block."""

_BYTES = BLOCK // 8


class Bits:
    """A subset of range(size).

    Args:
        parts: bool arrays [n] that together, in order, say which numbers are members; each is packed as it arrives.

    Attributes:
        size: of the range.
        count: of members.
    """

    def __init__(self, parts: Iterable[np.ndarray]):
        packed, rest, self.size = [], np.zeros(0, bool), 0
        for part in parts:
            self.size += len(part)
            part = np.concatenate([rest, part])
            whole = len(part) // BLOCK * BLOCK
            packed.append(np.packbits(part[:whole], bitorder="little"))
            rest = part[whole:]
        last = np.zeros(BLOCK, bool)  # always there, so that the end of the range lies in a block too
        last[: len(rest)] = rest
        self._bytes = np.concatenate([*packed, np.packbits(last, bitorder="little")])
        in_block = np.bitwise_count(self._bytes.view(np.uint64)).reshape(-1, _BYTES // 8).sum(1, dtype=np.int64)
        self._before = np.cumsum(in_block) - in_block
        self.count = int(in_block.sum())

    @property
    def hash(self) -> str:
        """SHA-256 of the size and the bits."""
        return hashlib.sha256(self.size.to_bytes(8, "little") + self._bytes.tobytes()).hexdigest()

    def __contains__(self, number: int) -> bool:
        return 0 <= number < self.size and bool(self._bytes[number >> 3] >> (number & 7) & 1)

    def between(self, start: int, end: int) -> np.ndarray:
        """Which numbers in [start, end) are members, bool [end - start]."""
        first = start >> 3
        bits = np.unpackbits(self._bytes[first : (end + 7) >> 3], bitorder="little")
        return bits[start - 8 * first : end - 8 * first].astype(bool)

    def rank(self, bound: int) -> int:
        """How many members are below `bound`, which is at most `size`."""
        block, within = divmod(bound, BLOCK)
        return int(self._before[block]) + (self._block(block) & ((1 << within) - 1)).bit_count()

    def select(self, number: int) -> int:
        """The member with `number` others below it; raises IndexError if there is none."""
        if not 0 <= number < self.count:
            raise IndexError(f"member {number} of {self.count}")
        block = int(self._before.searchsorted(number, side="right")) - 1
        bits, wanted, place, width = self._block(block), number - int(self._before[block]), 0, BLOCK
        while width > 1:
            width //= 2
            below = (bits & ((1 << width) - 1)).bit_count()
            if wanted >= below:
                wanted, place, bits = wanted - below, place + width, bits >> width
        return block * BLOCK + place

    def _block(self, number: int) -> int:
        return int.from_bytes(self._bytes[number * _BYTES : (number + 1) * _BYTES].tobytes(), "little")
