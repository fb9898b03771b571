"""The rows of a mapped shard as views of its bytes, each checked as it is read; no row is ever parsed by Arrow."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from zlib_ng import zlib_ng

from mvlm.data.images.encoded import ChangedImage
from mvlm.data.shards.files import Shard, index_again
from mvlm.data.shards.in_place import resolved
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.plain_rows import OUTSIDE, kind_of, places, read_key
from mvlm.data.shards.row_index import RowIndex, parsed, unpacked
from mvlm.data.shards.schema import IMAGE_COLUMNS, OWN_COLUMNS, SCHEMAS
from mvlm.errors import UserError

try:
    from mvlm.data.shards._rows import read_row, row_crc32
except ImportError:  # installing mvlm builds it where there is a C compiler
    from mvlm.data.shards.plain_rows import read_row, row_crc32


class DamagedRow(ValueError):
    """A row that is not as it was written; the message is a clause that says what is wrong with it."""

    def __init__(self, reason: str, key: str):
        super().__init__(reason)
        self.key = key  # as it now reads


class EncodedImage(NamedTuple):
    """An encoded image in its shard, or a reference to the file that it is in."""

    data: memoryview  # uint8, of the mapped shard
    crc32: int

    def checked(self) -> memoryview:
        """Its bytes; raises `ChangedImage` if they are not those that were written."""
        data = resolved(self.data)
        if zlib_ng.crc32(data) != self.crc32:
            raise ChangedImage
        return data


class Row(NamedTuple):
    """One row, already checked, except for its images, which are checked when they are asked for and not copied."""

    key: str
    encoded: tuple[EncodedImage, ...]  # the image, or the left and the right one of a pair
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
    """The columns of a task, by their positions in a row."""

    kinds: str  # a letter for each
    common: Callable[[tuple[Any, ...]], tuple[str, str, int, int]]  # of a row: key, source, width and height
    images: tuple[tuple[int, int], ...]  # each with its CRC-32
    captions: int | None
    own: tuple[tuple[str, int], ...]
    firsts: tuple[int, ...]  # where each column begins in a batch's part of `RowIndex.buffers`; then the part's length


class ShardRows:
    """The rows of a mapped shard.

    Args:
        data: the shard's bytes.
        task: of `SCHEMAS`.
        index: where its columns are; if it has no CRC-32s, texts are not checked.

    Raises:
        ValueError: the index is for other columns.
    """

    __slots__ = ("_buffers", "_crc32", "_data", "_layout", "_pair_starts", "_starts")

    def __init__(self, data: memoryview, task: str, index: RowIndex):
        self._data, self._layout = data, _layout(task)
        self._starts, self._buffers, self._crc32 = index.starts, index.buffers, index.crc32
        if len(self._buffers) != self._layout.firsts[-1] * (len(self._starts) - 1):
            raise ValueError("its index is of other columns")
        self._pair_starts: list[int] | None = None

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, number: int) -> Row:
        """A row, whose images are not checked yet; raises `DamagedRow`."""
        layout = self._layout
        try:
            found = read_row(self._data, self._starts, self._buffers, layout.kinds, number, self._crc32)
        except ValueError as error:
            raise DamagedRow(
                str(error), read_key(self._data, self._starts, self._buffers, layout.kinds, number)
            ) from None
        key, source, width, height = layout.common(found)
        captions = [] if layout.captions is None else found[layout.captions]
        if not captions and layout.captions is not None:
            raise DamagedRow("the row has no caption", key)
        images = tuple([EncodedImage(found[image], found[crc32]) for image, crc32 in layout.images])
        return Row(key, images, captions, source, width, height, {name: found[at] for name, at in layout.own})

    def captions(self) -> int:
        """How many captions all rows have together."""
        return self._starts_of_pairs()[-1]

    def row_of_pair(self, pair: int) -> tuple[int, int]:
        """The row of a pair, and which of the row's captions is the pair's. Pairs are numbered in the rows' order.

        Raises:
            DamagedRow: the offsets that say so are not those that were written.
        """
        try:
            starts = self._starts_of_pairs()
            if not 0 <= pair < starts[-1]:
                raise ValueError(OUTSIDE)
            batch = bisect_right(starts, pair) - 1
            ends, caption = self._caption_ends(batch), pair - starts[batch]
            row, first = bisect_right(ends, caption) - 1, self._starts[batch]
            if not (0 <= row < len(ends) - 1 and self.is_sound(first + row)):
                # A damaged offset misleads the search, but those of sound rows are right.
                enclosing = (at for at in range(len(ends) - 1) if ends[at] <= caption < ends[at + 1])
                row = next((at for at in enclosing if self.is_sound(first + at)), row)
            if not 0 <= row < len(ends) - 1:
                raise ValueError(OUTSIDE)
        except (ValueError, IndexError) as error:
            raise DamagedRow(str(error), "") from None
        return first + row, caption - ends[row]

    def _starts_of_pairs(self) -> list[int]:
        """The first pair of each batch, then the number of pairs; from the index, so no flipped bit shifts them."""
        if self._pair_starts is None:
            layout = self._layout
            assert layout.captions is not None
            text_offsets = self._buffers[layout.firsts[layout.captions] + 3 :: layout.firsts[-1]]  # bytes of int32
            self._pair_starts = list(accumulate((max(0, (size >> 2) - 1) for size in text_offsets), initial=0))
        return self._pair_starts

    def _caption_ends(self, batch: int) -> memoryview:
        """int32 [rows + 1], where each row's captions begin among the batch's, and where the last row's end."""
        layout = self._layout
        assert layout.captions is not None
        first = self._buffers[batch * layout.firsts[-1] + layout.firsts[layout.captions]]
        rows = self._starts[batch + 1] - self._starts[batch]
        return self._data[first : first + 4 * (rows + 1)].cast("i")

    def is_sound(self, number: int) -> bool:
        """Whether the row matches its CRC-32; the images are not checked."""
        try:
            return self._crc32 is None or self.crc32(number) == self._crc32[number]
        except ValueError:
            return False

    def crc32(self, number: int) -> int:
        """The CRC-32 of a row as it is now; raises ValueError if it cannot be read."""
        return row_crc32(self._data, self._starts, self._buffers, self._layout.kinds, number)


@dataclass(frozen=True, slots=True)
class OpenShard:
    """A mapped shard."""

    file: MappedFile
    index: MappedFile | None
    rows: ShardRows

    def index_is_whole(self, shard: Shard) -> bool:
        """Whether the index has the manifest's hash; also true if there is none."""
        return self.index is None or hashlib.sha256(self.index.data).hexdigest() == shard.index_sha256


def open_shard(
    file: MappedFile, index: MappedFile | None, shard: Shard, name: str, task: str, folder: str | Path
) -> OpenShard:
    """A mapped shard's rows, by its row index; without one, Arrow reads the footer and the headers of the batches.

    Args:
        name: of the shard, for messages.
        folder: of its corpus, likewise.

    Raises:
        UserError: it is not an Arrow file, has other columns or another number of rows, or its index is not its own.
    """
    try:
        found = parsed(file.data, SCHEMAS[task]) if index is None else unpacked(index.data, len(file.data), shard.rows)
        rows = ShardRows(file.data, task, found)
        if len(rows) != shard.rows:
            raise ValueError(f"it does not hold the {shard.rows} rows the manifest gives it")
    except (pa.ArrowException, OSError, ValueError) as error:
        damaged, remedy = name, "copy or shard it again"
        if index is not None:
            damaged, remedy = f"The row index of {name}", index_again(folder)
        raise UserError(f"{damaged} cannot be read ({error}): {remedy}.") from None
    return OpenShard(file, index, rows)


def index_of(data: memoryview, task: str) -> RowIndex:
    """The index of a mapped shard, to be written beside it.

    Raises:
        ValueError, pa.ArrowException: it is not a shard of that task.
    """
    index = parsed(data, SCHEMAS[task])
    rows = ShardRows(data, task, index)
    return replace(index, crc32=array("I", map(rows.crc32, range(len(rows)))))


@cache
def _layout(task: str) -> _Layout:
    schema = SCHEMAS[task]
    kinds = "".join(kind_of(field.type) for field in schema)
    at = {name: place for place, name in enumerate(schema.names)}
    return _Layout(
        kinds=kinds,
        common=itemgetter(*(at[name] for name in ("key", "source", "width", "height"))),
        images=tuple((at[name], at[columns[2]]) for name, columns in IMAGE_COLUMNS.items() if name in at),
        captions=at.get("captions"),
        own=tuple((field.name, at[field.name]) for field in OWN_COLUMNS.get(task, ())),
        firsts=tuple(accumulate(map(places, kinds), initial=0)),
    )
