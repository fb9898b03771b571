"""How a corpus is written, and the names of the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from mvlm.data.shards.in_place import reference
from mvlm.data.shards.schema import CAPTION, OWN_COLUMNS

from .filters import SOUND, Checked, CheckedImage, Filters
from .inputs import PathOrUrl
from .record import Record
from .split import Split

QUARANTINE = "quarantine.jsonl"
YIELD_TEXT = "yield.txt"


@dataclass(frozen=True)
class Options:
    """How a corpus is written. All but the engine, the workers, the memory and the tolerance decide its bytes."""

    split: Split | None = None
    shard_bytes: int = 256_000_000  # of a shard, and of the input of a part
    workers: int = 1
    tolerate: float = 0.5  # share of the records that may be dropped
    filters: Filters = SOUND
    dedup: str = ""  # "exact" or "perceptual": of equal images the first is kept
    exclude: tuple[PathOrUrl, ...] = ()  # corpora whose images are left out
    memory_bytes: int = 4_000_000_000  # that sorting the rows' marks may take
    engine: str = "local"
    ray_address: str | None = None
    origin: Mapping[str, Any] | None = None  # where records come from, for source.json; tasks open the source by it

    @property
    def names(self) -> list[str]:
        """The names of the splits, or only "" if there are none."""
        return list(self.split.shares) if self.split else [""]

    @property
    def checked(self) -> Filters:
        """The filters, with what the check must compute for the other options."""
        look = self.dedup == "perceptual" or bool(self.exclude)
        return replace(self.filters, exact_hash=self.dedup == "exact", look=look)


def stored_row(record: Record, found: Checked) -> SimpleNamespace:
    """A row with the columns of the record's task as attributes, and whatever else its source says as `meta`."""
    first, *second = found.pictures
    row = SimpleNamespace(key=record.key, captions=found.captions, source=record.source, **found.columns)
    row.meta = record.fields
    image = reference(record.place) if record.place else record.image
    row.image, (row.width, row.height, row.crc32) = _stored(image, first)
    if second:
        row.image2, (row.width2, row.height2, row.crc32_2) = _stored(record.image2, second[0])
    return row


def _stored(image: bytes, picture: CheckedImage) -> tuple[bytes, tuple[int, int, int]]:
    return picture.encoded or image, (picture.width, picture.height, picture.crc32)


def task_of(record: Record) -> str:
    """The task whose own columns the record has."""
    names = set(record.columns)
    tasks = [task for task, columns in OWN_COLUMNS.items() if {column.name for column in columns} == names]
    return tasks[0] if names else CAPTION
