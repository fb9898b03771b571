"""The columns of a mapped shard as views of its bytes; no row is ever parsed by Arrow."""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa


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


class Rows:
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
class OpenShard:
    cached: pa.MemoryMappedFile | None  # where the file is one of the cache
    starts: list[int]  # first row of each record batch, within the shard
    batches: list[Rows]

    def find(self, row: int) -> tuple[Rows, int]:
        batch = bisect_right(self.starts, row) - 1
        return self.batches[batch], row - self.starts[batch]

    def is_dropped(self) -> bool:
        """Whether the cache has dropped the file, so that it lives on through us alone."""
        return self.cached is not None and os.fstat(self.cached.fileno()).st_nlink == 0


def _integers(buffer: pa.Buffer, code: Literal["i", "I"], first: int, length: int) -> memoryview:
    """A view of 4-byte integers; indexing one gives a Python int, several times faster than a numpy scalar."""
    return memoryview(buffer).cast("B")[4 * first : 4 * (first + length)].cast(code)


def _numbers(column: pa.Array, code: Literal["i", "I"]) -> memoryview:
    return _integers(column.buffers()[1], code, column.offset, len(column))


def _strings(column: pa.Array) -> _Strings:
    _, offsets, data = column.buffers()
    return _Strings(offsets, data, column.offset, len(column))
