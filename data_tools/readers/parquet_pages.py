"""The pages of a column of a parquet file, plain or compressed by snappy, and where their bytes lie in the file.

Snappy leaves what it cannot shorten as it is, in runs of up to 64 KB (format_description.txt of google/snappy). Images
are compressed already, so that nearly all of their bytes are in the file as they are; the reference keeps the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.shards.in_place import KEPT, PlaceInFile
from mvlm.data.shards.mapped import MappedFile

SHORTEST = 64
"""Fewest bytes of a run that is referred to; a shorter run takes less room than a reference to it."""

DATA_V2 = 3
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
"""Types of Thrift's compact protocol (thrift-compact-protocol.md of apache/thrift)."""


class UnknownPage(ValueError):
    """The file has something that parquet's page headers cannot have."""


@dataclass(frozen=True)
class _Run:
    start: int  # in the page
    offset: int  # in the file
    size: int


@dataclass
class Page:
    """A decompressed page.

    Attributes:
        is_first: of its row group.
    """

    file: Path
    content: bytes
    runs: list[_Run]
    is_first: bool
    _at: int = 0

    def next(self, image: bytes) -> PlaceInFile | None:
        """Where in the file the next image lies, after the ones before it; None if it is not on this page."""
        start = self.content.find(image, self._at)
        if start < 0:
            return None
        self._at = start + len(image)
        return self._place(start, self._at)

    def _place(self, start: int, end: int) -> PlaceInFile:
        runs, kept = [], b""
        while start < end:
            number = bisect_right(self.runs, start, key=lambda run: run.start + run.size)
            run = self.runs[number] if number < len(self.runs) else _Run(end, 0, 0)
            if run.start > start:
                until = min(run.start, end)
                runs.append((KEPT, until - start))
                kept += self.content[start:until]
            else:
                until = min(run.start + run.size, end)
                runs.append((run.offset + start - run.start, until - start))
            start = until
        return PlaceInFile(self.file, tuple(runs), kept)


def pages(file: Path, column: str, first_group: int) -> Iterator[Page]:
    """The pages of a column, from a row group on, in their order in the file.

    Args:
        column: its path in the schema, such as "image.bytes".

    Raises:
        UnknownPage: the file does not follow parquet's format.
    """
    about, content = pq.read_metadata(file, memory_map=True), MappedFile(file).data
    for number in range(first_group, about.num_row_groups):
        group = about.row_group(number)
        for chunk in (group.column(place) for place in range(group.num_columns)):
            if chunk.path_in_schema != column:
                continue
            at = chunk.data_page_offset
            if chunk.dictionary_page_offset is not None:
                at = min(at, chunk.dictionary_page_offset)
            first, end = at, at + chunk.total_compressed_size
            while at < end:
                header, begin = _struct(content, at)
                whole, runs = _decompressed(content, header, begin, chunk.compression)
                yield Page(file, whole, runs, at == first)
                at = begin + header[3]


def _decompressed(
    content: memoryview, header: dict[int, Any], begin: int, compression: str
) -> tuple[bytes, list[_Run]]:
    """A page and its runs; numbers of header fields are those of parquet.thrift: 1 type, 2 size, 3 compressed size."""
    size, packed = header[2], header[3]
    second = header.get(8, {})
    levels = second.get(5, 0) + second.get(6, 0) if header[1] == DATA_V2 else 0
    begin, size, packed = begin + levels, size - levels, packed - levels
    if compression == "UNCOMPRESSED" or not second.get(7, True):
        return bytes(content[begin : begin + packed]), [_Run(0, begin, packed)]
    whole = pa.Codec(compression).decompress(content[begin : begin + packed], size, asbytes=True)
    return whole, list(_literals(content, begin, begin + packed))


def _literals(content: memoryview, at: int, end: int) -> Iterator[_Run]:
    """The runs that a snappy block holds uncompressed."""
    _, at = _varint(content, at)
    start = 0
    while at < end:
        tag = content[at]
        at += 1
        kind, more = tag & 3, tag >> 2
        if kind:  # a copy of what came before it
            size = 4 + (more & 7) if kind == 1 else 1 + more
            at += (1, 2, 4)[kind - 1]
        else:
            size = more + 1
            if more >= 60:
                width = more - 59
                size = int.from_bytes(content[at : at + width], "little") + 1
                at += width
            if size >= SHORTEST:
                yield _Run(start, at, size)
            at += size
        start += size


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, its fields by number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        fields[number], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind in (_I16, _I32, _I64):
        return _zigzag(data, at)
    if kind == _STRUCT:
        return _struct(data, at)
    if kind == _BINARY:
        size, at = _varint(data, at)
        return None, at + size
    if kind in (_BYTE, _DOUBLE):
        return None, at + (1 if kind == _BYTE else 8)
    raise UnknownPage(f"type {kind} at byte {at}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _zigzag(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
