"""Corpora of shards, each mapped when it is first touched."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.columns import DamagedRow, OpenShard, Row, open_shard
from mvlm.data.shards.files import UNCOUNTED, index_again
from mvlm.data.shards.location import open_location
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.opened import FETCHED, OpenShards
from mvlm.data.shards.schema import CAPTION, Manifest
from mvlm.data.shards.selection import Selection
from mvlm.errors import UserError, cannot_read


class UnreadableRow(UserError):
    """A single row that is not as it was written; another may take its place."""

    def __init__(self, where: str, key: str, reason: str):
        super().__init__(f"{where} (key {key!r}): {reason}: copy its shard again, or shard the corpus again.")
        self.where, self.key, self.reason = where, key, reason

    def __reduce__(self) -> tuple[type[UnreadableRow], tuple[str, str, str]]:
        return UnreadableRow, (self.where, self.key, self.reason)  # it is sent from loader processes


class Corpus:
    """Shards opened by their manifest alone; each is mapped when it is first touched.

    Args:
        folder: where they are, a folder or a URL that fsspec knows.
        cache: of this node, for the shards of a URL.
        task: one of `SCHEMAS`, which the rows must be for.
        open_shards: those of all corpora that share its limits.

    Attributes:
        selection: the rows that are kept, if not all are; then only these and their pairs have numbers.

    Raises:
        UserError: the folder is missing, unfinished or of another task, or a shard is missing or has another length
            than written.
    """

    def __init__(
        self,
        folder: str | Path,
        cache: Cache | None = None,
        task: str = CAPTION,
        open_shards: OpenShards | None = None,
    ):
        self.folder = folder
        self.location = open_location(folder, cache or Cache())
        self.manifest = self.location.manifest
        check_task(folder, self.manifest, task)
        self.shard_starts: Sequence[int] = array("q", accumulate(self.manifest.shards.rows, initial=0))
        self.selection: Selection | None = None
        self._opened: dict[int, OpenShard] = {}
        self._open_shards = open_shards or OpenShards()

    def keep(self, selection: Selection) -> None:
        """Number only the selected rows."""
        self.selection, self.shard_starts = selection, selection.starts
        self._pair_starts = selection.pair_starts if selection.pairs else selection.starts

    @property
    def fingerprint(self) -> str:
        """Equal exactly for the same rows in the same order."""
        whole = self.manifest.fingerprint
        return hashlib.sha256(f"{whole}{self.selection.hash}".encode()).hexdigest() if self.selection else whole

    def pair_starts(self) -> Sequence[int]:
        """The first pair of each shard, each row being paired with each of its captions, then the number of pairs.

        Raises:
            UserError: the manifest does not count them, and the shards lie at a URL or cannot be read.
        """
        if self.selection:
            return self._pair_starts
        counts: Sequence[int] = self.manifest.shards.captions
        if UNCOUNTED in counts:
            if self.location.cached:
                raise UserError(
                    f"The manifest of {self.folder} does not count the captions of its shards, which data.epoch = "
                    "'pairs' needs: run `mvlm-data row-index` on the folder that was copied there and copy "
                    "it again, or set data.epoch = 'images'."
                )
            counts = [self._open_shard(number).rows.captions() for number in range(len(self.manifest.shards))]
        return array("q", accumulate(counts, initial=0))

    def row_of_pair(self, shard: int, pair: int) -> tuple[int, int]:
        """The row of a shard's pair, and which of its captions is the pair's. Raises like `row`."""
        opened, kept = self._whole(shard), self.selection
        if kept:  # if every row has one caption, pairs are rows
            bits, starts = (kept.pairs, kept.shard_pairs) if kept.pairs else (kept.rows, kept.shard_rows)
            pair = bits.select(self._pair_starts[shard] + pair) - starts[shard]
        try:
            row, caption = opened.rows.row_of_pair(pair)
        except DamagedRow as error:
            raise UnreadableRow(f"{self.location.name(shard)} pair {pair}", error.key, str(error)) from None
        if kept:
            return kept.rows.rank(kept.shard_rows[shard] + row), caption
        return self.shard_starts[shard] + row, caption

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}  # another process maps what it needs

    def __len__(self) -> int:
        """The number of rows kept."""
        return self.shard_starts[-1]

    def row(self, index: int) -> Row:
        """A row; the pages of its image are not touched until that is asked for.

        Raises:
            UnreadableRow: it is not as it was written.
            UserError: the shard is damaged as a whole, or was cut; names it.
        """
        shard, local = self._locate(index)
        opened = self._whole(shard)
        try:
            return opened.rows.row(local)
        except DamagedRow as error:
            reason = str(error)
            if not opened.index_is_whole(self.manifest.shards[shard]):
                reason += f", but its row index has changed too, by its SHA-256: {index_again(self.folder)}"
            raise UnreadableRow(self.where(index), error.key, reason) from None

    def where(self, index: int) -> str:
        """The file and the row in it, for messages."""
        shard, local = self.position(index)
        return f"{shard} row {local}"

    def position(self, index: int) -> tuple[str, int]:
        """The file of a row and the row in it."""
        shard, local = self._locate(index)
        return self.location.name(shard), local

    def changed(self, index: int) -> bool:
        """Whether the shard of a row was written to, cut or removed since the corpus was opened."""
        return self.location.changed(self._locate(index)[0])

    def is_taken_down(self, index: int) -> bool:
        """Whether a row must not be used any more."""
        rows = self.location.taken_down
        if not rows:
            return False
        row = self.selection.rows.select(index) if self.selection else index
        place = bisect_left(rows, row)
        return place < len(rows) and rows[place] == row

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = bisect_right(self.shard_starts, index) - 1
        if kept := self.selection:
            return shard, kept.rows.select(index) - kept.shard_rows[shard]
        return shard, index - self.shard_starts[shard]

    def _whole(self, number: int) -> OpenShard:
        """A shard, opened if it is not yet; raises `UserError` if it or its row index was cut since."""
        opened = self._opened.get(number) or self._open(number)
        if not opened.file.is_whole():
            raise _cut(self.location.name(number), opened.file, "copy or shard it again")
        if opened.index and not opened.index.is_whole():
            raise _cut(f"The row index of {self.location.name(number)}", opened.index, index_again(self.folder))
        return opened

    def _open(self, number: int) -> OpenShard:
        """Map a shard; two threads may do so at once, which costs little and does no harm."""
        if self.location.cached:
            for other in [other for other, shard in list(self._opened.items()) if shard.file.is_removed()]:
                self._opened.pop(other, None)  # or its bytes would stay on the disk
        opened = self._opened[number] = self._open_shard(number)
        most = FETCHED if self.location.cached else self._open_shards.shards
        self._open_shards.add(self._opened, number, len(opened.file.data), most)
        return opened

    def _open_shard(self, number: int) -> OpenShard:
        shard, name = self.manifest.shards[number], self.location.name(number)
        try:
            file = self.location.map(number, shard)
            beside = shard.index
            index = self.location.map_index(beside) if beside else None
        except (OSError, ValueError) as error:
            raise cannot_read(name, error, "copy or shard it again") from None
        return open_shard(file, index, shard, name, self.manifest.task, self.folder)


def _cut(name: str, file: MappedFile, remedy: str) -> UserError:
    return UserError(f"{name} cannot be read (it no longer has all of its {len(file.data)} bytes): {remedy}.")


def check_task(folder: str | Path, manifest: Manifest, task: str) -> None:
    """Raise `UserError` if a corpus is not for the task."""
    if manifest.task != task:
        raise UserError(f"{folder} holds rows of the task {manifest.task!r} and not {task!r}: give a corpus for that.")
