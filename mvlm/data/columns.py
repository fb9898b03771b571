"""The columns of a mapped shard as views of its bytes; no row is ever parsed by Arrow."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from struct import calcsize
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from mvlm.data.schema import CAPTION, OWN_COLUMNS


class Row(NamedTuple):
    """One row, without a copy of its image."""

    key: str
    image: memoryview  # uint8, of the mapped shard
    captions: list[str]
    source: str
    width: int
    height: int
    crc32: int
    second: tuple[memoryview, int] | None  # of a pair, the right image and its crc32
    own: dict[str, Any]  # the columns that only this task has, by name


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


class _Texts:
    """A column of lists of strings."""

    __slots__ = ("_offsets", "_texts")

    def __init__(self, column: pa.ListArray):
        if column.values.null_count:
            raise ValueError("it holds nulls")
        self._offsets = _integers(column.buffers()[1], "i", column.offset, len(column) + 1)
        self._texts = _strings(column.values)

    def __getitem__(self, index: int) -> list[str]:
        return [self._texts.text(i) for i in range(self._offsets[index], self._offsets[index + 1])]


class Columns:
    """Those of one record batch as views of the mapped file.

    Args:
        task: of `SCHEMAS`.
    """

    __slots__ = ("_captions", "_crc32", "_height", "_image", "_key", "_own", "_second", "_source", "_width")

    def __init__(self, batch: pa.RecordBatch, task: str):
        batch.validate()
        if any(column.null_count for column in batch.columns):
            raise ValueError("it holds nulls")
        self._key, self._image, self._source = (_strings(batch.column(name)) for name in ("key", "image", "source"))
        self._width, self._height = (_numbers(batch.column(name), "i") for name in ("width", "height"))
        self._crc32 = _numbers(batch.column("crc32"), "I")
        self._captions = _Texts(batch.column("captions")) if task == CAPTION else None
        self._own = [(field.name, _reader(batch.column(field.name))) for field in OWN_COLUMNS.get(task, ())]
        pairs = "image2" in batch.schema.names
        self._second = (_strings(batch.column("image2")), _numbers(batch.column("crc32_2"), "I")) if pairs else None

    def row(self, index: int) -> Row:
        return Row(
            key=self._key.text(index),
            image=self._image[index],
            captions=self.captions(index),
            source=self._source.text(index),
            width=self._width[index],
            height=self._height[index],
            crc32=self._crc32[index],
            second=(self._second[0][index], self._second[1][index]) if self._second else None,
            own={name: read(index) for name, read in self._own} if self._own else {},
        )

    def image(self, index: int) -> memoryview:
        return self._image[index]

    def captions(self, index: int) -> list[str]:
        """Raises ValueError where a row of captions has none."""
        if self._captions is None:
            return []
        captions = self._captions[index]
        if not captions:
            raise ValueError("the row has no caption")
        return captions


@dataclass(frozen=True, slots=True)
class OpenShard:
    file: pa.MemoryMappedFile
    descriptor: int  # of the file
    size: int  # bytes mapped
    cached: bool  # whether the file is one of the cache
    starts: list[int]  # first row of each record batch, within the shard
    batches: list[Columns]

    def find(self, row: int) -> tuple[Columns, int]:
        """Raises ValueError where the file was cut: the kernel ends a process that reads a page no longer there."""
        if os.lseek(self.descriptor, 0, os.SEEK_END) < self.size:  # a third of the time of a stat
            raise ValueError(f"of its {self.size} bytes not all are there any more")
        batch = bisect_right(self.starts, row) - 1
        return self.batches[batch], row - self.starts[batch]

    def is_dropped(self) -> bool:
        """Whether the cache has dropped the file, so that it lives on through us alone."""
        return self.cached and os.fstat(self.descriptor).st_nlink == 0


def _integers(buffer: pa.Buffer, code: Literal["i", "I", "q"], first: int, length: int) -> memoryview:
    """A view of integers; indexing one gives a Python int, several times faster than a numpy scalar."""
    size = calcsize(code)
    return memoryview(buffer).cast("B")[size * first : size * (first + length)].cast(code)


def _numbers(column: pa.Array, code: Literal["i", "I", "q"]) -> memoryview:
    return _integers(column.buffers()[1], code, column.offset, len(column))


def _strings(column: pa.Array) -> _Strings:
    _, offsets, data = column.buffers()
    return _Strings(offsets, data, column.offset, len(column))


def _reader(column: pa.Array) -> Callable[[int], Any]:
    """What gives the Python value of a place in a column of text, texts, whole numbers or truths."""
    if pa.types.is_list(column.type):
        return _Texts(column).__getitem__
    if pa.types.is_string(column.type):
        return _strings(column).text
    if pa.types.is_boolean(column.type):
        bits, first = memoryview(column.buffers()[1]).cast("B"), column.offset
        return lambda index: bool(bits[(first + index) >> 3] >> ((first + index) & 7) & 1)
    return _numbers(column, "q").__getitem__
