"""What a part notes about the rows that it kept, so that rows of different parts can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .filters import Checked
from .perceptual_hash import LOOK, SEEN
from .record import Record

SCHEMA = pa.schema(
    {
        "number": pa.int64(),  # of the record within the part
        "split": pa.int16(),
        "key": pa.string(),
        "where": pa.string(),
        "source": pa.string(),
        "captions": pa.int32(),
        "caption_drops": pa.list_(pa.string()),  # the reason for each dropped caption
        "id": pa.binary(16),  # a digest of the key
        "exact": pa.binary(16),  # of the image's bytes; zeros if it was not asked for
        "look": pa.binary(),  # of all its images, one after the other
        "seen": pa.binary(),  # the beginning of each look, which is all it takes to find similar ones
    }
)
ROWS = 1024
"""Marks held in memory before they are written."""


def id_digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


class RowMark(NamedTuple):
    """What is noted about one row; the fields are the columns of `SCHEMA`."""

    number: int
    split: int
    key: str
    where: str
    source: str
    captions: int
    caption_drops: list[str]
    id: bytes
    exact: bytes
    look: bytes
    seen: bytes

    @property
    def name(self) -> str:
        return f"{self.key} ({self.where})"

    @property
    def looks(self) -> list[bytes]:
        """The look of each of its images."""
        return [self.look[start : start + LOOK.size] for start in range(0, len(self.look), LOOK.size)]


def mark_of(number: int, split: int, record: Record, found: Checked) -> RowMark:
    """The mark of a record that was kept; `number` counts within its part."""
    look = b"".join(picture.look for picture in found.pictures)
    seen = b"".join(picture.look[: SEEN.itemsize] for picture in found.pictures)
    about = record.key, record.where, record.source, len(found.captions), list(found.caption_drops.elements())
    return RowMark(number, split, *about, id_digest(record.key), found.exact or bytes(16), look, seen)


class MarkWriter:
    """A file of marks in the making."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pa.ipc.new_file(str(path), SCHEMA)
        self._held: list[RowMark] = []

    def add(self, mark: RowMark) -> None:
        self._held.append(mark)
        if len(self._held) >= ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = [pa.array([getattr(mark, field.name) for mark in self._held], field.type) for field in SCHEMA]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._held = []


def mark_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The marks in order; only these `columns`, if given."""
    options = pa.ipc.IpcReadOptions(included_fields=columns and [SCHEMA.get_field_index(name) for name in columns])
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped, options=options) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def marks(path: Path, only: np.ndarray | None = None) -> Iterator[RowMark]:
    """The marks in order; only those of the records with these numbers, if given."""
    if only is not None and not len(only):
        return
    for batch in mark_batches(path):
        chosen = batch if only is None else batch.filter(pa.array(np.isin(batch["number"].to_numpy(), only)))
        row: dict[str, Any]
        for row in chosen.to_pylist():
            yield RowMark(**row)
