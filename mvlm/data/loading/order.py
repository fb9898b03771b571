"""The order of samples: a seeded shuffle computed for any position, with nothing stored.

Position p is the p-th sample seen since the run's start; its epoch is p // rows. If any row is read as cheaply as the
next one, each epoch is one permutation of all rows. Otherwise it is a block shuffle: in each epoch the rows are
rotated by a random offset and cut into blocks of consecutive rows, the blocks are permuted, neighbouring blocks
form windows, and the rows of a window are permuted among themselves. So reading needs only the blocks of one
window at a time, and no two epochs cut the same blocks.

The permutations are Feistel networks with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002), whose round function is splitmix64's finaliser (Steele, Lea and Flood, 2014).

For a mixture, the draws of an epoch are shuffled: a corpus of weight 2.5 is drawn twice in full and once more for the
next half of its rows, so that over the epochs the draws of any two rows differ by at most one.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

import numpy as np

from mvlm.data.shards.mixture import draw_counts

_ROUNDS = 8
_SMALLEST_HALF = 3  # bits of a Feistel half; with fewer, some permutations of small ranges would never occur


class _Step(IntEnum):
    ROTATE = 1
    BLOCKS = 2
    ROWS = 3
    REPEATS = 4
    SHARDS = 5
    PAIRS = 6
    GLOBAL = 7


class GlobalShuffle:
    """Maps positions to rows; each epoch is a permutation of all of them.

    Args:
        rows: 1 or more.
        seed: any integer; the order is a function of (seed, epoch) alone.
    """

    def __init__(self, rows: int, seed: int):
        self.rows, self._seed = rows, seed

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 positions [n], 0 or more -> int64 rows [n]."""
        epoch, place = np.divmod(positions, self.rows)
        key = _key(self._seed, epoch, _Step.GLOBAL, np.zeros_like(epoch))
        return permute(place, np.full_like(place, self.rows), key)


class BlockShuffle:
    """Maps positions to rows; within each epoch a bijection.

    Args:
        rows: rows of the corpus, 1 or more.
        seed: any integer; the order is a function of (seed, epoch) alone.
        block: consecutive rows that stay together until the last step.
        window: blocks whose rows are permuted together. The incomplete block at the end, if any, joins the
            last window.
    """

    def __init__(self, rows: int, seed: int, block: int, window: int):
        if min(rows, block, window) < 1:
            raise ValueError(f"rows, block and window must be 1 or more, not {rows}, {block}, {window}")
        self.rows = rows
        self.block = block
        self._seed = seed
        self._blocks = rows // block
        self._windows = max(1, -(-self._blocks // window))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 positions, 0 or more -> int64 rows of the same shape."""
        positions = np.asarray(positions, dtype=np.int64)
        epoch, place = np.divmod(positions.ravel(), self.rows)
        row = self._permute_blocks(self._permute_rows(place, epoch), epoch)
        offset = (_key(self._seed, epoch, _Step.ROTATE, epoch) % np.uint64(self.rows)).astype(np.int64)
        return ((row + offset) % self.rows).reshape(positions.shape)

    def _permute_rows(self, place: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Permute the rows of each window among themselves."""
        window = self._window_of(place // self.block)
        start = self._window_start(window) * self.block
        end = np.where(window == self._windows - 1, self.rows, self._window_start(window + 1) * self.block)
        return start + permute(place - start, end - start, _key(self._seed, epoch, _Step.ROWS, window))

    def _permute_blocks(self, place: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Permute the complete blocks; the incomplete one stays at the end."""
        block, within = np.divmod(place, self.block)
        complete = block < self._blocks
        key = _key(self._seed, epoch, _Step.BLOCKS, np.zeros_like(epoch))
        moved = permute(block[complete], np.full(complete.sum(), self._blocks), key[complete])
        block[complete] = moved
        return block * self.block + within

    def _window_start(self, window: np.ndarray) -> np.ndarray:
        """The first block of a window; the blocks are dealt out as evenly as possible."""
        return window * self._blocks // self._windows

    def _window_of(self, block: np.ndarray) -> np.ndarray:
        if self._blocks == 0:
            return np.zeros_like(block)
        return np.minimum(((block + 1) * self._windows - 1) // self._blocks, self._windows - 1)


class ShardShuffle:
    """Maps positions to rows, whole shards at a time: for stores that are slow to answer, and caches that hold a few.

    In each epoch the shards are permuted, neighbours form windows, and the rows of a window are permuted among
    themselves. It costs memory and, once per epoch, time proportional to the number of shards.

    Args:
        lengths: rows of each shard.
        seed: any integer; the order is a function of (seed, epoch) alone.
        window: shards whose rows are permuted together.
    """

    def __init__(self, lengths: Sequence[int], seed: int, window: int):
        self._lengths = np.array(lengths, dtype=np.int64)
        self._firsts = np.cumsum(self._lengths) - self._lengths
        self.rows = int(self._lengths.sum())
        self._seed, self._window = seed, window
        self._shuffled = lru_cache(2)(self._shuffle)  # a batch may span two epochs

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """int64 positions [n], 0 or more -> int64 rows [n]."""
        epochs, places = np.divmod(positions, self.rows)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            rows[mine] = self._rows_of(epoch, places[mine])
        return rows

    def _rows_of(self, epoch: int, place: np.ndarray) -> np.ndarray:
        shards, ends = self._shuffled(epoch)
        window = np.searchsorted(ends, place, side="right") // self._window
        starts = np.concatenate([[0], ends])
        first = starts[window * self._window]
        last = starts[np.minimum((window + 1) * self._window, len(shards))]
        key = _key(self._seed, np.full_like(place, epoch), _Step.ROWS, window)
        place = first + permute(place - first, last - first, key)
        nth = np.searchsorted(ends, place, side="right")
        return self._firsts[shards[nth]] + place - starts[nth]

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the epoch's order, and where each ends."""
        count = len(self._lengths)
        epochs = np.full(count, epoch)
        key = _key(self._seed, epochs, _Step.SHARDS, np.zeros_like(epochs))
        shards = permute(np.arange(count), np.full(count, count), key)
        return shards, np.cumsum(self._lengths[shards])


class MixtureSampler:
    """Maps positions to rows of a mixture and to how often each was drawn before in the same epoch.

    Args:
        sizes: rows of each corpus.
        weights: how often an epoch draws each row of a corpus; a fraction is rounded to whole rows.
        seed, block, window: as in `BlockShuffle`; a window of 0 means a `GlobalShuffle`, of single rows.
        shards: rows of each shard of each corpus, if the order is to be a `ShardShuffle`; `window` is then that one's,
            and `block` is about as many rows as a shard has.

    Attributes:
        per_epoch: draws per epoch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        block: int = 1,
        window: int = 0,
        shards: Sequence[Sequence[int]] | None = None,
    ):
        counts = draw_counts(sizes, weights)
        self.per_epoch = sum(counts)
        self._order: GlobalShuffle | BlockShuffle | ShardShuffle
        if shards is not None:
            self._order = ShardShuffle(_pieces(counts, shards, block), seed, window)
        elif window:
            self._order = BlockShuffle(self.per_epoch, seed, block, window)
        else:
            self._order = GlobalShuffle(self.per_epoch, seed)
        self._seed, self._block = seed, block
        self._sizes, self._counts = np.array(sizes, dtype=np.int64), np.array(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        self._first_rows = np.cumsum(self._sizes) - self._sizes

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 positions [n] -> rows and occurrences, both int64 [n]; the occurrence is 0 the first time."""
        corpus, place = self._locate(self._order(positions))
        occurrence, row = np.divmod(place, self._sizes[corpus])
        part = np.flatnonzero((occurrence + 1) * self._sizes[corpus] > self._counts[corpus])
        row[part] = self._next_of_shuffle(corpus[part], row[part], positions[part] // self.per_epoch)
        return self._first_rows[corpus] + row, occurrence

    def _locate(self, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        corpus = np.searchsorted(self._ends, draw, side="right")
        return corpus, draw - (self._ends - self._counts)[corpus]

    def _next_of_shuffle(self, corpus: np.ndarray, place: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Rows of the part drawn once more: each epoch continues, cyclically, in one fixed shuffle of blocks."""
        size = self._sizes[corpus]
        turn = (epoch * (self._counts[corpus] % size) + place) % size
        blocks = size // self._block
        block, within = np.divmod(turn, self._block)
        whole = np.flatnonzero(block < blocks)
        key = _key(self._seed, np.zeros_like(epoch), _Step.REPEATS, corpus)
        block[whole] = permute(block[whole], blocks[whole], key[whole])
        return block * self._block + within


def _pieces(counts: Sequence[int], shards: Sequence[Sequence[int]], block: int) -> list[int]:
    """The draws of an epoch, cut where shards end: whole rounds of a corpus's shards, and blocks of the rest."""
    pieces: list[int] = []
    for count, rows in zip(counts, shards, strict=True):
        rounds, rest = divmod(count, max(sum(rows), 1))
        pieces += list(rows) * rounds + [block] * (rest // block) + [rest % block]
    return [piece for piece in pieces if piece]


def scattered(place: np.ndarray, size: np.ndarray, seed: int, part: np.ndarray) -> np.ndarray:
    """Permute places, each below its size, within each of the parts; all int64 [n]. The same in every epoch."""
    return permute(place, size, _key(seed, np.zeros_like(part), _Step.PAIRS, part))


def _key(seed: int, epoch: np.ndarray, step: _Step, part: np.ndarray) -> np.ndarray:
    """A uint64 for each element, unrelated for any two (seed, epoch, step, part)."""
    key = np.full(epoch.shape, np.uint64(seed & ((1 << 64) - 1)))
    for word in (np.full_like(epoch, step), epoch, part):
        key = _mix(key ^ _mix(word.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)))
    return key


def permute(value: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Element by element, apply the `key`-th pseudorandom permutation of range(size) to `value`.

    All int64 [n] but `key`, uint64 [n]. Sizes up to 2**62.
    """
    half = np.maximum(_SMALLEST_HALF, (_bit_length(size - 1) + 1) // 2).astype(np.uint64)
    result = value.astype(np.uint64)
    walking = np.arange(len(value))
    limit = size.astype(np.uint64)
    while len(walking):
        # The network permutes a power of four; following it until it comes back into range permutes the range.
        result[walking] = _feistel(result[walking], half[walking], key[walking])
        walking = walking[result[walking] >= limit[walking]]
    return result.astype(np.int64)


def _feistel(value: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(key + (right << np.uint64(4)) + np.uint64(number)) & mask)
    return (left << half) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64 in which every bit depends on every bit; arrays wrap silently."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _bit_length(value: np.ndarray) -> np.ndarray:
    length = np.zeros_like(value)
    for shift in (32, 16, 8, 4, 2, 1):
        large = value >> shift > 0
        length += np.where(large, shift, 0)
        value = np.where(large, value >> shift, value)
    return length + (value > 0)
