"""The numbers an epoch draws: those of a mixture's rows, or of its pairs, each a row with one of its captions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from mvlm.data.shards.corpus import Corpus


class Numbers:
    """Numbers all rows, or all pairs, in the order of the corpora; memory grows only with the number of shards.

    If every image has one caption, pairs are rows.

    Args:
        pairs: number pairs instead of rows.

    Attributes:
        pairs: whether pairs are numbered, and are not the same as rows.
        sizes: how many numbers each corpus has.
        starts: int64, the first number of each shard of all corpora, then the total.

    Raises:
        UserError: the pairs cannot be counted.
    """

    def __init__(self, corpora: Sequence[Corpus], pairs: bool):
        self._corpora = corpora
        self.pairs = pairs and any(corpus.manifest.captions != corpus.manifest.rows for corpus in corpora)
        within = [corpus.pair_starts() if self.pairs else corpus.shard_starts for corpus in corpora]
        self.sizes = [starts[-1] for starts in within]
        firsts = accumulate(self.sizes, initial=0)
        shards = [first + np.array(starts[:-1]) for first, starts in zip(firsts, within, strict=False)]
        self.starts = np.concatenate([*shards, [sum(self.sizes)]])
        self._first_rows = list(accumulate(map(len, corpora), initial=0))
        self._first_shards = list(accumulate((len(corpus.manifest.shards) for corpus in corpora), initial=0))

    def visit(self, number: int) -> tuple[int, int | None]:
        """The row of a number and, for a pair, which of the row's captions it has.

        Raises:
            UnreadableRow: the shard no longer says which row the pair belongs to.
            UserError: the shard is damaged as a whole.
        """
        if not self.pairs:
            return number, None
        place, corpus, shard = self._shard_of(number)
        row, caption = self._corpora[corpus].row_of_pair(shard, number - int(self.starts[place]))
        return self._first_rows[corpus] + row, caption

    def first_row(self, number: int) -> int:
        """The first row of the number's shard."""
        _, corpus, shard = self._shard_of(number)
        return self._first_rows[corpus] + self._corpora[corpus].shard_starts[shard]

    def approximate_rows(self, numbers: np.ndarray) -> np.ndarray:
        """int64 numbers -> rows; for pairs, as if all rows of a shard had equally many captions. Reads no shard."""
        if not self.pairs:
            return numbers
        starts = [
            first + np.array(corpus.shard_starts[:-1])
            for first, corpus in zip(self._first_rows, self._corpora, strict=False)
        ]
        rows = np.concatenate([*starts, [self._first_rows[-1]]])
        shard = self.starts.searchsorted(numbers, side="right") - 1
        within = (numbers - self.starts[shard]) * np.diff(rows)[shard] // np.diff(self.starts)[shard]
        return rows[shard] + within

    def counts_by_shard(self) -> list[list[int]]:
        """How many numbers each shard of each corpus has."""
        counts = np.diff(self.starts).tolist()
        return [counts[first:end] for first, end in pairwise(self._first_shards)]

    def fetch(self, number: int) -> None:
        """Bring the number's shard to this node; raises `UserError` if it cannot be fetched."""
        _, corpus, shard = self._shard_of(number)
        self._corpora[corpus].location.fetch(shard)

    def is_local(self, number: int) -> bool:
        """Whether the number's shard needs no fetching."""
        _, corpus, _ = self._shard_of(number)
        return not self._corpora[corpus].location.cached

    def _shard_of(self, number: int) -> tuple[int, int, int]:
        """The number's shard counted over all corpora, its corpus, and the shard within that corpus."""
        if not 0 <= number < self.starts[-1]:
            raise IndexError(f"number {number} of {self.starts[-1]}")
        place = int(self.starts.searchsorted(number, side="right")) - 1
        corpus = bisect_right(self._first_shards, place) - 1
        return place, corpus, place - self._first_shards[corpus]
