"""Shards read in place: memory maps, offsets and slices, no row ever parsed by Arrow."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa

from mvlm.data.cache import Cache
from mvlm.data.order import draw_counts
from mvlm.data.places import open_place
from mvlm.data.schema import CAPTION, SCHEMA
from mvlm.errors import UserError

OPEN_SHARDS = 128
"""Shards of a corpus mapped at a time: more than a shuffle window touches, fewer than the files a process may open."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One row, without a copy of its image."""

    key: str
    image: memoryview  # uint8, of the mapped shard
    captions: list[str]
    source: str
    width: int
    height: int
    crc32: int


class _Strings:
    """A binary or string column of a record batch."""

    __slots__ = ("_bytes", "_offsets")

    def __init__(self, offsets: pa.Buffer, data: pa.Buffer | None, first: int, length: int):
        self._offsets = _integers(offsets, "i", first, length + 1)
        self._bytes = memoryview(data if data is not None else b"").cast("B")

    def __getitem__(self, index: int) -> memoryview:
        start, end = self._offsets[index], self._offsets[index + 1]
        if not 0 <= start <= end <= len(self._bytes):
            raise ValueError("an offset points outside its column")
        return self._bytes[start:end]

    def text(self, index: int) -> str:
        return str(self[index], "utf-8")


class _Rows:
    """The columns of one record batch as views of the mapped file."""

    __slots__ = ("_caption_offsets", "_captions", "_crc32", "_height", "_image", "_key", "_source", "_width")

    def __init__(self, batch: pa.RecordBatch):
        batch.validate()
        lists = batch.column("captions")
        if any(column.null_count for column in (*batch.columns, lists.values)):
            raise ValueError("it holds nulls")
        self._key, self._image, self._source = (_strings(batch.column(name)) for name in ("key", "image", "source"))
        self._caption_offsets = _integers(lists.buffers()[1], "i", lists.offset, len(lists) + 1)
        self._captions = _strings(lists.values)
        self._width, self._height = (_numbers(batch.column(name), "i") for name in ("width", "height"))
        self._crc32 = _numbers(batch.column("crc32"), "I")

    def row(self, index: int) -> Row:
        return Row(
            key=self._key.text(index),
            image=self._image[index],
            captions=self.captions(index),
            source=self._source.text(index),
            width=self._width[index],
            height=self._height[index],
            crc32=self._crc32[index],
        )

    def captions(self, index: int) -> list[str]:
        span = range(self._caption_offsets[index], self._caption_offsets[index + 1])
        if not span:
            raise ValueError("the row has no caption")
        return [self._captions.text(i) for i in span]


@dataclass(frozen=True, slots=True)
class _OpenShard:
    cached: pa.MemoryMappedFile | None  # where the file is one of the cache
    starts: list[int]  # first row of each record batch, within the shard
    batches: list[_Rows]

    def find(self, row: int) -> tuple[_Rows, int]:
        batch = bisect_right(self.starts, row) - 1
        return self.batches[batch], row - self.starts[batch]

    def is_dropped(self) -> bool:
        """Whether the cache has dropped the file, so that it lives on through us alone."""
        return self.cached is not None and os.fstat(self.cached.fileno()).st_nlink == 0


class Corpus:
    """Shards opened by their manifest alone; each is mapped when it is first touched.

    Args:
        folder: where they lie, a folder or a URL that fsspec knows.
        cache: of this node, for the shards of a URL.

    Raises:
        UserError: the folder is missing, unfinished or of another task, or a shard is missing or has another length
            than written.
    """

    def __init__(self, folder: str | Path, cache: Cache | None = None):
        self.folder = folder
        self.place = open_place(folder, cache)
        self.manifest = self.place.manifest
        if self.manifest.task != CAPTION:
            raise UserError(
                f"{self.folder} holds rows of the task {self.manifest.task!r}, and pretraining reads captions: "
                "give a corpus of image-caption pairs."
            )
        self.shard_starts = list(accumulate((shard.rows for shard in self.manifest.shards), initial=0))
        self._opened: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": OrderedDict()}  # another process maps what it needs

    def __len__(self) -> int:
        return self.manifest.rows

    def row(self, index: int) -> Row:
        """Raises `UserError` naming shard and row where the shard is damaged."""
        return self._read(index, _Rows.row)

    def captions(self, index: int) -> list[str]:
        """The captions alone; touches no page of the image. Raises as `row`."""
        return self._read(index, _Rows.captions)

    def where(self, index: int) -> str:
        """The file and the row in it, for messages."""
        shard, local = self._locate(index)
        return f"{self.place.name(shard)} row {local}"

    def changed(self, index: int) -> bool:
        """Whether the shard of a row was written to, cut or removed since the corpus was opened."""
        return self.place.changed(self._locate(index)[0])

    def bring(self, index: int) -> None:
        """Have the shard of a row on this node; raises `UserError` where it cannot be fetched."""
        self.place.bring(self._locate(index)[0])

    def _read(self, index: int, get: Callable[[_Rows, int], T]) -> T:
        shard, local = self._locate(index)
        rows, at = self._open(shard).find(local)
        try:
            return get(rows, at)
        except ValueError as error:
            raise UserError(
                f"{self.where(index)} cannot be read ({error}): the shard is damaged; copy or shard it again."
            ) from None

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = bisect_right(self.shard_starts, index) - 1
        return shard, index - self.shard_starts[shard]

    def _open(self, number: int) -> _OpenShard:
        """Threads may open one shard twice at the same time; that costs a little and harms nothing."""
        found = self._opened.get(number)
        if found is None:
            for other in [other for other, shard in list(self._opened.items()) if shard.is_dropped()]:
                self._opened.pop(other, None)  # else its bytes would stay on the disk
            found = self._opened[number] = self._open_shard(number)
            while len(self._opened) > OPEN_SHARDS:
                self._opened.popitem(last=False)
        return found

    def _open_shard(self, number: int) -> _OpenShard:
        rows, name = self.manifest.shards[number].rows, self.place.name(number)
        try:
            file = self.place.map(number)
            reader = pa.ipc.open_file(file)
            if not reader.schema.equals(SCHEMA):
                raise ValueError("its columns are not those of this version")
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            filled = [batch for batch in batches if len(batch)]
            starts = list(accumulate((len(batch) for batch in filled), initial=0))
            if starts.pop() != rows:
                raise ValueError(f"it does not hold the {rows} rows the manifest gives it")
            return _OpenShard(file if self.place.cached else None, starts, [_Rows(batch) for batch in filled])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"{name} cannot be read ({error}): copy or shard it again.") from None


class Mixture:
    """Corpora end to end, as one sequence of rows; memory grows with the shards, not with the rows.

    Args:
        weights: how often an epoch draws each row of a corpus; empty = once.
        cache: as of `Corpus`.

    Attributes:
        sizes: rows of each corpus.
        per_epoch: draws an epoch.
    """

    def __init__(self, folders: Sequence[str | Path], weights: Sequence[float] = (), cache: Cache | None = None):
        if not folders:
            raise UserError("No shard folder is named: give one or more, in data.train to train on.")
        self.corpora = [Corpus(folder, cache) for folder in folders]
        self.sizes = [len(corpus) for corpus in self.corpora]
        self._starts = list(accumulate(self.sizes, initial=0))
        if not len(self):
            raise UserError(f"{', '.join(map(str, folders))} holds no rows: shard a corpus that has some.")
        self.weights = list(weights) or [1.0] * len(self.corpora)
        self.per_epoch = sum(draw_counts(self.sizes, self.weights))
        if not self.per_epoch:
            raise UserError(f"data.weights = {self.weights} draw no row of {', '.join(map(str, folders))}: raise them.")

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def fingerprint(self) -> str:
        """Equal exactly when the same corpora stand in the same order with the same weights, wherever they lie."""
        joined = "".join(corpus.manifest.fingerprint for corpus in self.corpora)
        if set(self.weights) != {1.0}:
            joined += repr(self.weights)
        return hashlib.sha256(joined.encode()).hexdigest()

    def locate(self, row: int) -> tuple[Corpus, int]:
        """The corpus and the row in it of a global row."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = bisect_right(self._starts, row) - 1
        return self.corpora[number], row - self._starts[number]

    def row(self, row: int) -> Row:
        corpus, local = self.locate(row)
        return corpus.row(local)

    def captions(self, row: int) -> list[str]:
        corpus, local = self.locate(row)
        return corpus.captions(local)

    def where(self, row: int) -> str:
        corpus, local = self.locate(row)
        return corpus.where(local)

    def changed(self, row: int) -> bool:
        corpus, local = self.locate(row)
        return corpus.changed(local)

    def bring(self, row: int) -> None:
        corpus, local = self.locate(row)
        corpus.bring(local)


def _integers(buffer: pa.Buffer, code: Literal["i", "I"], first: int, length: int) -> memoryview:
    """A view of 4-byte integers; indexing one gives a Python int, several times faster than a numpy scalar."""
    return memoryview(buffer).cast("B")[4 * first : 4 * (first + length)].cast(code)


def _numbers(column: pa.Array, code: Literal["i", "I"]) -> memoryview:
    return _integers(column.buffers()[1], code, column.offset, len(column))


def _strings(column: pa.Array) -> _Strings:
    _, offsets, data = column.buffers()
    return _Strings(offsets, data, column.offset, len(column))
