"""Reads a row of a mapped shard by its row index, in Python; native/rows.c does so faster if it was built."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from struct import Struct
from typing import Any

import pyarrow as pa
from zlib_ng import zlib_ng

OUTSIDE = "an offset points outside its column"
CHANGED = "its texts are not those that were written (their checksum differs)"

TEXT, IMAGE, TEXTS, BIT = "t", "I", "l", "b"
_INT32 = Struct("<ii")
_NUMBERS = {kind: Struct(f"<{letter}") for kind, letter in (("i", "i"), ("u", "I"), ("q", "q"))}
_LETTERS = {pa.string(): TEXT, pa.binary(): IMAGE, pa.bool_(): BIT, pa.int32(): "i", pa.uint32(): "u", pa.int64(): "q"}
_BUFFERS = {TEXTS: 3, TEXT: 2, IMAGE: 2}


def kind_of(type_: pa.DataType) -> str:
    """The letter of a column's type."""
    return TEXTS if pa.types.is_list(type_) else _LETTERS[type_]


def places(kind: str) -> int:
    """How many numbers `RowIndex.buffers` has for a column of a batch: an offset and a length for each buffer."""
    return 2 * _BUFFERS.get(kind, 1)


def read_row(
    data: memoryview,
    starts: Sequence[int],
    buffers: Sequence[int],
    kinds: str,
    number: int,
    crc32s: Sequence[int] | None,
) -> tuple[Any, ...]:
    """The values of a row in the order of its columns; images are views of `data`.

    Args:
        data: the shard's bytes.
        starts, buffers, crc32s: of its `RowIndex`; without checksums, texts are not checked.
        kinds: a letter for each column.

    Raises:
        ValueError: the row's offsets or its texts have changed; the message is a clause.
    """
    found = _found(data, starts, buffers, kinds, number)
    if crc32s is not None and _crc32(kinds, found) != crc32s[number]:
        raise ValueError(CHANGED)
    return tuple(map(_value, kinds, found))


def row_crc32(data: memoryview, starts: Sequence[int], buffers: Sequence[int], kinds: str, number: int) -> int:
    """The CRC-32 of a row as it is now, as defined in row_index.py; arguments and errors as in `read_row`."""
    return _crc32(kinds, _found(data, starts, buffers, kinds, number))


def read_key(data: memoryview, starts: Sequence[int], buffers: Sequence[int], kinds: str, number: int) -> str:
    """The key of a damaged row, as it now reads; "" if it cannot be read."""
    batch = bisect_right(starts, number) - 1
    first = batch * sum(map(places, kinds))  # the key is the first column
    try:
        return str(_slice(data, buffers[first : first + places(TEXT)], number - starts[batch]), "utf-8", "replace")
    except (ValueError, struct.error):
        return ""


def _found(data: memoryview, starts: Sequence[int], buffers: Sequence[int], kinds: str, number: int) -> list[Any]:
    """For each column its bytes, for a list those of each text, for anything else the value."""
    batch = bisect_right(starts, number) - 1
    at, place = number - starts[batch], batch * sum(map(places, kinds))
    found: list[Any] = []
    try:
        for kind in kinds:
            column = buffers[place : place + places(kind)]
            place += places(kind)
            if kind == TEXTS:
                first, end = _between(data, column[0], at, (column[3] >> 2) - 1)
                found.append([_slice(data, column[2:], nth) for nth in range(first, end)])
            elif kind in (TEXT, IMAGE):
                found.append(_slice(data, column, at))
            elif kind == BIT:
                found.append(bool(data[column[0] + (at >> 3)] >> (at & 7) & 1))
            else:
                form = _NUMBERS[kind]
                found += form.unpack_from(data, column[0] + form.size * at)
    except (IndexError, struct.error):
        raise ValueError(OUTSIDE) from None
    return found


def _slice(data: memoryview, buffers: Sequence[int], at: int) -> memoryview:
    first, end = _between(data, buffers[0], at, buffers[3])
    if buffers[2] + end > len(data):
        raise ValueError(OUTSIDE)
    return data[buffers[2] + first : buffers[2] + end]


def _between(data: memoryview, offsets: int, at: int, length: int) -> tuple[int, int]:
    """Where the element `at` of a buffer of offsets begins and ends."""
    first, end = _INT32.unpack_from(data, offsets + 4 * at)
    if not 0 <= first <= end <= length:
        raise ValueError(OUTSIDE)
    return first, end


def _crc32(kinds: str, found: list[Any]) -> int:
    numbers: list[int] = []
    texts: list[memoryview] = []
    for kind, value in zip(kinds, found, strict=True):
        if kind == TEXTS:
            numbers += (len(value), *map(len, value))
            texts += value
        elif kind == TEXT:
            numbers.append(len(value))
            texts.append(value)
        elif kind != IMAGE:
            numbers.append(value)
    return zlib_ng.crc32(b"".join((struct.pack(f"<{len(numbers)}q", *numbers), *texts)))


def _value(kind: str, found: Any) -> Any:
    if kind == TEXTS:
        return [str(text, "utf-8") for text in found]
    return str(found, "utf-8") if kind == TEXT else found
