"""The row index beside each shard: where its columns are and a CRC-32 of each row, so that Arrow never parses a row.

`NNNNNN.index` beside `NNNNNN.arrow`, little-endian and meant to be memory-mapped:

    head     magic "mvlmrows", u32 version, u32 CRC-32 of the other fields of the head and of starts and buffers,
             u64 bytes of the shard, u64 rows, u64 record batches, u64 buffers per batch
    starts   u64 [batches + 1]            the first row of each batch, then the number of rows
    buffers  u64 [batches, buffers, 2]    offset in the shard and length of each buffer
    crc32    u32 [rows]

The buffers are those of the columns in schema order: int32 offsets and bytes for a text or an image; int32 offsets and
then those two of all the texts for a list of texts; values for anything else.

A row's CRC-32 covers all its columns but the images. It is taken first over i64s in schema order (a text's length in
bytes; the number of texts in a list and the length of each; the value of anything else), then over the bytes of all
texts in the same order. Those values include the images' own CRC-32s (`IMAGE_COLUMNS`), so it vouches for the images
too.

An index depends on its shard alone. The manifest has its length and SHA-256, outside the fingerprint.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct, pack

import pyarrow as pa
from zlib_ng import zlib_ng

MAGIC = b"mvlmrows"
VERSION = 1
_NAMES = Struct("<8sI")
_CHECKED = Struct("<I")
_SIZES = Struct("<QQQQ")
_HEAD_BYTES = _NAMES.size + _CHECKED.size + _SIZES.size


@dataclass(frozen=True, slots=True)
class RowIndex:
    """What is known about a mapped shard without reading a row.

    Attributes:
        starts: first row of each record batch, then the number of rows.
        buffers: offset in the shard and length of each buffer, batch after batch.
        crc32: of each row; None if the shard has no index, so that its rows' texts cannot be checked.
    """

    starts: array[int] | memoryview
    buffers: array[int] | memoryview
    crc32: array[int] | memoryview | None


def packed(index: RowIndex, shard_bytes: int) -> bytes:
    """The file's content."""
    starts, buffers, rows = _u64(index.starts), _u64(index.buffers), index.starts[-1]
    batches = len(index.starts) - 1
    sizes = _SIZES.pack(shard_bytes, rows, batches, len(index.buffers) // (2 * batches) if batches else 0)
    names = _NAMES.pack(MAGIC, VERSION)
    assert index.crc32 is not None
    checked = _CHECKED.pack(zlib_ng.crc32(b"".join((names, sizes, starts, buffers))))
    return b"".join((names, checked, sizes, starts, buffers, pack(f"<{rows}I", *index.crc32)))


def unpacked(data: memoryview, shard_bytes: int, rows: int) -> RowIndex:
    """A view of a mapped index.

    Args:
        shard_bytes, rows: of its shard.

    Raises:
        ValueError: it is damaged, of another version or of another shard; the message is a clause.
    """
    if len(data) < _HEAD_BYTES:
        raise ValueError("it is cut short")
    magic, version = _NAMES.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("it is not a row index")
    if version != VERSION:
        raise ValueError(f"it is of version {version} and not {VERSION}")
    found_bytes, found_rows, batches, buffers = _SIZES.unpack_from(data, _NAMES.size + _CHECKED.size)
    first = _HEAD_BYTES + 8 * (batches + 1)
    end = first + 16 * batches * buffers
    if len(data) != end + 4 * found_rows:
        raise ValueError("it is cut short")
    (checked,) = _CHECKED.unpack_from(data, _NAMES.size)
    if zlib_ng.crc32(data[_NAMES.size + _CHECKED.size : end], zlib_ng.crc32(data[: _NAMES.size])) != checked:
        raise ValueError("its head is damaged")
    if (found_bytes, found_rows) != (shard_bytes, rows):
        raise ValueError("it is of another shard")
    return RowIndex(data[_HEAD_BYTES:first].cast("Q"), data[first:end].cast("Q"), data[end:].cast("I"))


def parsed(shard: memoryview, schema: pa.Schema) -> RowIndex:
    """The index of a mapped shard as Arrow reads it, without CRC-32s.

    Raises:
        ValueError, pa.ArrowException: it is not an Arrow file with these columns, or cannot be read in place.
    """
    whole = pa.py_buffer(shard)
    reader = pa.ipc.open_file(pa.BufferReader(whole))
    if not reader.schema.equals(schema):
        raise ValueError("its columns are not those of this version")
    starts, buffers = array("Q", [0]), array("Q")
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        batch.validate()
        if len(batch):
            starts.append(starts[-1] + len(batch))
            buffers.extend(_places(batch, whole))
    return RowIndex(starts, buffers, None)


def _places(batch: pa.RecordBatch, whole: pa.Buffer) -> list[int]:
    """Offset and length of each of a batch's buffers."""
    places: list[int] = []
    for column in batch.columns:
        listed = column.values if pa.types.is_list(column.type) else None
        if column.null_count or (listed is not None and listed.null_count):
            raise ValueError("it holds nulls")
        parts = [column.buffers()[1]] if listed is not None else column.buffers()[1:]
        for buffer in parts + (listed.buffers()[1:] if listed is not None else []):
            if buffer is None or not buffer.size:  # the column has no bytes
                places += (0, 0)
                continue
            at = buffer.address - whole.address
            if not 0 <= at <= at + buffer.size <= whole.size:
                raise ValueError("its columns are compressed")
            places += (at, buffer.size)
    return places


def _u64(values: Sequence[int]) -> bytes:
    return pack(f"<{len(values)}Q", *values)


assert sys.byteorder == "little", "the views of mapped files use the machine's byte order"
