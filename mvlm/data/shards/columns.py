"""The rows of a mapped shard as views of its bytes, each checked as it is read; no row is ever parsed by Arrow."""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from struct import Struct
from typing import Any, NamedTuple

import pyarrow as pa
from zlib_ng import zlib_ng

from mvlm.data.images.encoded import ChangedImage
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.row_index import RowIndex, buffer_count, parsed, row_crc32, unpacked
from mvlm.data.shards.schema import IMAGE_COLUMNS, OWN_COLUMNS, SCHEMAS, Shard
from mvlm.errors import UserError

OUTSIDE = "an offset points outside its column"
CHANGED = "its texts are not those that were written (their checksum differs)"

_TEXT, _TEXTS, _BITS = "text", "texts", "bits"
_UNREADABLE = (ValueError, IndexError, struct.error)
"""Raised where what says where a row lies has changed."""

_NUMBERS = {pa.int32(): Struct("<i"), pa.uint32(): Struct("<I"), pa.int64(): Struct("<q")}


class DamagedRow(ValueError):
    """A row that is not the one that was written; the message says in half a sentence what is wrong with it."""

    def __init__(self, reason: str, key: str):
        super().__init__(reason)
        self.key = key  # as it now reads


class EncodedImage(NamedTuple):
    """An encoded image as it lies in its shard."""

    data: memoryview  # uint8, of the mapped shard
    crc32: int

    def checked(self) -> memoryview:
        """Its bytes; raises `ChangedImage` where they are not those that were written."""
        if zlib_ng.crc32(self.data) != self.crc32:
            raise ChangedImage
        return self.data


class Row(NamedTuple):
    """One row. What is in it was checked, but for the images, which are when they are asked for, and are not copied."""

    key: str
    encoded: tuple[EncodedImage, ...]  # the image; of a pair, the left and the right one
    captions: list[str]
    source: str
    width: int
    height: int
    own: dict[str, Any]  # the columns that only this task has, by name

    @property
    def image(self) -> memoryview:
        """The encoded image, or the left one; raises `ChangedImage`."""
        return self.encoded[0].checked()


class _Layout(NamedTuple):
    """Where a task's columns stand among the numbers that `RowIndex.buffers` has of a batch."""

    columns: tuple[tuple[str, Any, int], ...]  # all but the images: name, kind, first of its numbers
    images: tuple[tuple[str, int], ...]  # column of the CRC-32, first of its numbers
    texts: tuple[tuple[str, bool], ...]  # columns of texts, and whether of lists of them
    own: tuple[str, ...]
    stride: int  # numbers of a batch


class ShardRows:
    """The rows of a mapped shard.

    Args:
        data: the shard's bytes.
        task: of `SCHEMAS`.
        index: where its columns lie; where it has no CRC-32, texts are not checked.

    Raises:
        ValueError: the index is of other columns.
    """

    __slots__ = ("_buffers", "_crc32", "_data", "_int32", "_layout", "_pair_starts", "_starts")

    def __init__(self, data: memoryview, task: str, index: RowIndex):
        self._data, self._layout = data, _layout(task)
        self._int32 = data[: len(data) & ~3].cast("i")  # Arrow begins every buffer at a multiple of 8 bytes
        self._starts, self._buffers, self._crc32 = index.starts, index.buffers, index.crc32
        if len(self._buffers) != self._layout.stride * (len(self._starts) - 1):
            raise ValueError("its index is of other columns")
        self._pair_starts: list[int] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, number: int) -> Row:
        """Raises `DamagedRow`; the images are not looked at yet."""
        key: Any = b""
        try:
            values, images, numbers, texts = self._read(number)
            key = values["key"]
            if self._crc32 is not None and row_crc32(numbers, texts) != self._crc32[number]:
                raise ValueError(CHANGED)
            for name, is_list in self._layout.texts:
                value = values[name]
                values[name] = [text.decode() for text in value] if is_list else str(value, "utf-8")
            if values.get("captions") == []:
                raise ValueError("the row has no caption")
        except _UNREADABLE as error:
            raise DamagedRow(str(error), str(key, "utf-8", "replace")) from None
        return Row(
            key=values["key"],
            encoded=images,
            captions=values.get("captions", []),
            source=values["source"],
            width=values["width"],
            height=values["height"],
            own={name: values[name] for name in self._layout.own},
        )

    def captions(self) -> int:
        """How many all rows have together; raises one of `_UNREADABLE` where that cannot be read."""
        return self._starts_of_pairs()[-1]

    def row_of_pair(self, pair: int) -> tuple[int, int]:
        """The row of a pair, and which of the row's captions is the pair's. Pairs are numbered in the rows' order.

        Raises:
            DamagedRow: the numbers that say so are not those that were written.
        """
        try:
            starts = self._starts_of_pairs()
            if not 0 <= pair < starts[-1]:
                raise ValueError(OUTSIDE)
            batch = bisect_right(starts, pair) - 1
            ends = self._caption_ends(batch)
            caption = ends[0] + pair - starts[batch]
            row = bisect_right(ends, caption) - 1
            if not 0 <= row < len(ends) - 1:
                raise ValueError(OUTSIDE)
        except _UNREADABLE as error:
            raise DamagedRow(str(error), "") from None
        return self._starts[batch] + row, caption - ends[row]

    def _starts_of_pairs(self) -> list[int]:
        """The first pair of each batch, then the number of pairs."""
        if self._pair_starts is None:
            ends = map(self._caption_ends, range(len(self._starts) - 1))
            self._pair_starts = list(accumulate((end[-1] - end[0] for end in ends), initial=0))
        return self._pair_starts

    def _caption_ends(self, batch: int) -> memoryview:
        """int32 [rows + 1], where each row's captions begin among the batch's, and where the last one's end."""
        place = next(place for name, _, place in self._layout.columns if name == "captions")
        first = self._buffers[batch * self._layout.stride + place]
        rows = self._starts[batch + 1] - self._starts[batch]
        return self._data[first : first + 4 * (rows + 1)].cast("i")

    def is_sound(self, number: int) -> bool:
        """Whether the row has its CRC-32; the images are not looked at."""
        try:
            return self._crc32 is None or self.crc32(number) == self._crc32[number]
        except _UNREADABLE:
            return False

    def crc32(self, number: int) -> int:
        """Of a row as it is now; raises one of `_UNREADABLE` where it cannot be read."""
        _, _, numbers, texts = self._read(number)
        return row_crc32(numbers, texts)

    def _read(self, number: int) -> tuple[dict[str, Any], tuple[EncodedImage, ...], list[int], list[memoryview]]:
        """The row's bytes and numbers by column, its images, and what its CRC-32 is of."""
        batch = bisect_right(self._starts, number) - 1
        at, first = number - self._starts[batch], batch * self._layout.stride
        buffers = self._buffers[first : first + self._layout.stride].tolist()
        values: dict[str, Any] = {}
        numbers: list[int] = []
        texts: list[memoryview] = []
        for name, kind, place in self._layout.columns:
            if kind is _TEXT:
                values[name] = text = self._text(buffers, place, at)
                numbers.append(len(text))
                texts.append(text)
            elif kind is _TEXTS:
                values[name], lengths, text = self._texts(buffers, place, at)
                numbers.append(len(lengths))
                numbers += lengths
                texts.append(text)
            else:
                values[name] = value = self._number(kind, buffers[place], at)
                numbers.append(value)
        images = [EncodedImage(self._text(buffers, place, at), values[crc32]) for crc32, place in self._layout.images]
        return values, tuple(images), numbers, texts

    def _text(self, buffers: list[int], place: int, at: int) -> memoryview:
        offset, first = (buffers[place] >> 2) + at, buffers[place + 2]
        start, end = self._int32[offset], self._int32[offset + 1]
        if not 0 <= start <= end <= buffers[place + 3]:
            raise ValueError(OUTSIDE)
        return self._data[first + start : first + end]

    def _texts(self, buffers: list[int], place: int, at: int) -> tuple[list[bytes], list[int], memoryview]:
        """The texts of a list, their lengths, and the bytes of all of them."""
        offset, child = (buffers[place] >> 2) + at, buffers[place + 2] >> 2
        start, end = self._int32[offset], self._int32[offset + 1]
        if not 0 <= start <= end < buffers[place + 3] >> 2:
            raise ValueError(OUTSIDE)
        ends = self._int32[child + start : child + end + 1].tolist()
        if ends[0] < 0 or ends != sorted(ends) or ends[-1] > buffers[place + 5]:
            raise ValueError(OUTSIDE)
        base = buffers[place + 4]
        whole = self._data[base + ends[0] : base + ends[-1]]
        texts = [self._data[base + one : base + other].tobytes() for one, other in pairwise(ends)]
        return texts, [len(text) for text in texts], whole

    def _number(self, kind: Any, first: int, at: int) -> int:
        if kind is _BITS:
            return bool(self._data[first + (at >> 3)] >> (at & 7) & 1)  # people read "True", and compare with that
        (value,) = kind.unpack_from(self._data, first + kind.size * at)
        return int(value)


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A mapped shard."""

    file: MappedFile
    index: MappedFile | None
    rows: ShardRows

    def index_is_whole(self, shard: Shard) -> bool:
        """Whether the index has the manifest's hash; true also where there is none."""
        return self.index is None or hashlib.sha256(self.index.data).hexdigest() == shard.index_sha256


def open_shard(
    file: MappedFile, index: MappedFile | None, shard: Shard, name: str, task: str, again: str = ""
) -> OpenShard:
    """A mapped shard's rows, by its row index; where it has none, Arrow reads its footer and the heads of its batches.

    Args:
        name: of the shard, for messages.
        again: what to do where the index is damaged.

    Raises:
        UserError: it is no Arrow file, or has other columns or another number of rows; or its index is not its own.
    """
    remedy = "copy or shard it again"
    try:
        if index is None:
            found = parsed(file.data, SCHEMAS[task])
        else:
            remedy = again
            found = unpacked(index.data, len(file.data), shard.rows)
        rows = ShardRows(file.data, task, found)
        if len(rows) != shard.rows:
            raise ValueError(f"it does not hold the {shard.rows} rows the manifest gives it")
    except (pa.ArrowException, OSError, ValueError) as error:
        damaged = name if index is None else f"The row index of {name}"
        raise UserError(f"{damaged} cannot be read ({error}): {remedy}.") from None
    return OpenShard(file, index, rows)


def index_of(data: memoryview, task: str) -> RowIndex:
    """The index of a mapped shard, to be written beside it.

    Raises:
        ValueError, pa.ArrowException: it is no shard of that task.
    """
    index = parsed(data, SCHEMAS[task])
    rows = ShardRows(data, task, index)
    return replace(index, crc32=[rows.crc32(number) for number in range(len(rows))])


@cache
def _layout(task: str) -> _Layout:
    columns, images, place = [], [], 0
    for field in SCHEMAS[task]:
        if field.name in IMAGE_COLUMNS:
            images.append((IMAGE_COLUMNS[field.name][2], place))
        else:
            columns.append((field.name, _kind(field.type), place))
        place += 2 * buffer_count(field.type)
    own = tuple(field.name for field in OWN_COLUMNS.get(task, ()))
    texts = tuple((name, kind is _TEXTS) for name, kind, _ in columns if kind in (_TEXT, _TEXTS))
    return _Layout(tuple(columns), tuple(images), texts, own, place)


def _kind(type_: pa.DataType) -> Any:
    if pa.types.is_list(type_):
        return _TEXTS
    if pa.types.is_string(type_):
        return _TEXT
    return _BITS if pa.types.is_boolean(type_) else _NUMBERS[type_]
