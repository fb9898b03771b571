"""Weighted mixtures of corpora, of all their rows or of those that a condition keeps."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from mvlm.config.schema import Data
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.columns import Row
from mvlm.data.shards.corpus import Corpus, UnreadableRow
from mvlm.data.shards.numbers import Numbers
from mvlm.data.shards.opened import OpenShards
from mvlm.data.shards.schema import CAPTION
from mvlm.data.shards.selection import select, selection_hash
from mvlm.errors import UserError
from mvlm.model.masking import exact_count
from mvlm.runtime.wording import counted


class Mixture:
    """Corpora joined into one sequence of rows; memory grows with the number of shards, not of rows.

    Args:
        weights: how often an epoch draws each row, or each pair, of a corpus; empty = once.
        cache, task: as in `Corpus`.
        pairs: an epoch draws each row with each of its captions.
        where: a condition on the rows' metadata, or one per corpus; "" keeps all rows.
        trains: rows that were taken down keep their numbers, so that the order stays; otherwise they are left out.

    Attributes:
        numbers: of what an epoch draws.
        task: as given.
        per_epoch: draws per epoch.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        weights: Sequence[float] = (),
        cache: Cache | None = None,
        task: str = CAPTION,
        pairs: bool = False,
        where: Sequence[str] = (),
        trains: bool = False,
    ):
        if not folders:
            raise UserError("No shard folder is named: give one or more, in data.train to train on.")
        self.cache = cache or Cache()
        open_shards = OpenShards()
        self.corpora = [Corpus(folder, self.cache, task, open_shards) for folder in folders]
        if len(where) > 1:
            self.conditions = list(where)
        else:
            self.conditions = [where[0] if where else ""] * len(folders)
        for corpus, condition in zip(self.corpora, self.conditions, strict=True):
            _keep(corpus, condition, pairs, trains)
        self._starts = list(accumulate(map(len, self.corpora), initial=0))
        if not len(self):
            raise UserError(f"{', '.join(map(str, folders))} holds no rows: shard a corpus that has some.")
        if all(map(self.is_taken_down, range(len(self)))):
            raise _nothing_left(", ".join(map(str, folders)))
        self.task = task
        self.weights = list(weights) or [1.0] * len(self.corpora)
        self.numbers = Numbers(self.corpora, pairs)
        sizes = self.numbers.sizes
        counts = draw_counts(sizes, self.weights)
        if without := [str(folder) for folder, size, n in zip(folders, sizes, counts, strict=True) if size and not n]:
            raise UserError(f"data.weights = {self.weights} draw no row of {', '.join(without)}: raise them.")
        self.per_epoch = sum(counts)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def fingerprint(self) -> str:
        """Equal exactly for the same corpora in the same order with the same weights, wherever they are stored."""
        joined = "".join(corpus.fingerprint for corpus in self.corpora)
        if set(self.weights) != {1.0}:
            joined += repr(self.weights)
        return hashlib.sha256(joined.encode()).hexdigest()

    @property
    def selection(self) -> str:
        """A hash of the rows that the conditions keep; "" without any."""
        return selection_hash([corpus.selection for corpus in self.corpora]) if any(self.conditions) else ""

    def require_distinct(self) -> None:
        """Raise `UserError` if two corpora have the same rows: taken in turn, each would be drawn twice in a row."""
        known: dict[str, Corpus] = {}
        for corpus in self.corpora:
            if (same := known.setdefault(corpus.fingerprint, corpus)) is not corpus:
                raise UserError(
                    f"A stage's data.train names the same rows twice ({same.folder}, {corpus.folder}), and would draw "
                    "each twice in a row: name them once, and have data.weights draw them more often."
                )

    def is_taken_down(self, row: int) -> bool:
        corpus, local = self.locate(row)
        return corpus.is_taken_down(local)

    def locate(self, row: int) -> tuple[Corpus, int]:
        """The corpus of a global row, and the row within it."""
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"row {row} of {len(self)}")
        number = bisect_right(self._starts, row) - 1
        return self.corpora[number], row - self._starts[number]

    def row(self, row: int) -> Row:
        corpus, local = self.locate(row)
        return corpus.row(local)

    def key(self, row: int) -> str:
        """The key; if the row is damaged, as it now reads."""
        try:
            return self.row(row).key
        except UnreadableRow as error:
            return error.key

    def sound(
        self, rows: Iterable[int], report: Callable[[UnreadableRow], object] = lambda error: None
    ) -> Iterator[Row]:
        """The rows that may be used and are undamaged; an error for each damaged one goes to `report`."""
        for row in rows:
            if self.is_taken_down(row):
                continue
            try:
                yield self.row(row)
            except UnreadableRow as error:
                report(error)

    def where(self, row: int) -> str:
        corpus, local = self.locate(row)
        return corpus.where(local)

    def position(self, row: int) -> tuple[str, int]:
        corpus, local = self.locate(row)
        return corpus.position(local)

    def changed(self, row: int) -> bool:
        corpus, local = self.locate(row)
        return corpus.changed(local)


def _keep(corpus: Corpus, where: str, pairs: bool, trains: bool) -> None:
    """Leave out the rows that a condition does not keep and, unless for training, those that were taken down."""
    without = () if trains else corpus.location.taken_down
    if not where and not without:
        return
    of_pairs = pairs and corpus.manifest.captions != corpus.manifest.rows
    corpus.keep(select(corpus.location, where, of_pairs, without))
    if not len(corpus):
        if not where:
            raise _nothing_left(corpus.folder)
        raise UserError(f"{where!r} keeps no row of {corpus.folder}: relax the condition.")


def _nothing_left(folders: str | Path) -> UserError:
    return UserError(f"All rows of {folders} were taken down: give other shards.")


def draw_counts(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Draws per epoch from each corpus."""
    return [exact_count(weight, size, "nearest") for size, weight in zip(sizes, weights, strict=True)]


def training_mixture(data: Data, task: str = CAPTION, patience: float = 0.0) -> Mixture:
    """What a configuration trains on, waiting `patience` minutes for an unreachable store; raises like `Mixture`."""
    pairs = task == CAPTION and data.epoch == "pairs"
    cache = Cache(data.cache, data.cache_gb, patience)
    return Mixture(data.train, data.weights, cache, task, pairs, data.where, trains=True)


def held_out(data: Data, task: str = CAPTION, patience: float = 0.0) -> Mixture:
    """What it evaluates on, likewise; raises like `Mixture`."""
    return Mixture(data.eval, cache=Cache(data.cache, data.cache_gb, patience), task=task)


def kept_sentences(mixture: Mixture) -> list[str]:
    """A sentence for each condition, and for each corpus with rows that were taken down."""
    found = []
    for corpus, condition in zip(mixture.corpora, mixture.conditions, strict=True):
        kept, rows = len(corpus), corpus.manifest.rows
        if condition:
            found.append(
                f"data.where keeps {kept:,} of {rows:,} rows of {corpus.folder} ({kept / rows:.1%}): {condition}"
            )
        if gone := len(corpus.location.taken_down):
            found.append(f"{corpus.folder} has {counted(gone, 'row')} taken down: others take their places.")
    return found
