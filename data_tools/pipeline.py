"""From records to corpora: check each, admit it, write it to its split; count and list what is dropped.

`data_tools.sharding` makes corpora so, and `data_tools.reshape.retry` adds to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mvlm.data.shards.schema import CAPTION, OWN_COLUMNS
from mvlm.errors import UserError

from .dedup import EXCLUDED, DedupIndex, Excluded
from .engines import Map
from .filters import SOUND, Checked, CheckedImage, Filters, check_record
from .record import Dropped, Record
from .report import ShardReport
from .resume import Item, Replayed
from .split import MISSING, Split
from .writer import CorpusWriter

QUARANTINE = "quarantine.jsonl"
YIELD = "yield.json"
YIELD_TEXT = "yield.txt"
SOURCE = "source.json"


@dataclass(frozen=True)
class Options:
    """How a corpus is written. All but the engine, the workers and the tolerance decide its bytes."""

    split: Split | None = None
    shard_bytes: int = 256_000_000
    workers: int = 1
    tolerate: float = 0.5  # share of the records that may be dropped
    filters: Filters = SOUND
    dedup: str = ""  # "exact" or "perceptual": of equal images the first is kept
    exclude: tuple[Path, ...] = ()  # corpora none of whose images may come in
    engine: str = "local"
    ray_address: str | None = None
    origin: Mapping[str, Any] | None = None  # what the records are of, for source.json; a restart needs it

    @property
    def names(self) -> list[str]:
        """Of the splits; one of "" where there are none."""
        return list(self.split.shares) if self.split else [""]


class Pipeline(ABC):
    """The records on their way into the corpora, and all that is known of them.

    Args:
        folder: where the shards are made.
        report: what is known already.
        restarts: whether the index of duplicates will be asked, at times, what it has new.
    """

    def __init__(
        self, folder: Path, options: Options, excluded: Excluded, report: ShardReport, restarts: bool = False
    ) -> None:
        self.folder, self.options, self.report = folder, options, report
        self.index = DedupIndex(options.dedup, folder, restarts)
        self.writers: dict[str, CorpusWriter] = {}  # by split, once the task is known
        self._excluded = excluded

    def open(self, task: str) -> None:
        """Begin the corpora, unless that is done."""
        if self.options.dedup and task != CAPTION:
            raise UserError(f"--dedup keeps one record an image, but {task} records share images: leave it out.")
        if not self.writers:
            self.writers = {
                name: CorpusWriter(self.folder / name, self.options.shard_bytes, task) for name in self.options.names
            }

    def run(self, engine: Map, records: Iterable[Item | Replayed], on_record: Callable[[int], None]) -> None:
        """Take all of these records; `on_record` is called with each one's image bytes."""
        for item, result in engine(partial(_check, _needed(self.options)), records, _size):
            self.take(item, result)
            on_record(_size(item))

    def take(self, item: Item | Replayed, result: Checked | Dropped) -> bool:
        """Write a record or list it as dropped; whether it is kept."""
        assert not isinstance(item, Replayed)
        admitted = self.admit(item, result)
        if isinstance(admitted, Dropped):
            self.report.count(item.source, admitted)
            self.quarantine(admitted)
        elif admitted:
            row, name = admitted
            self.report.count(item.source, len(row.captions))
            self.write(row, name)
        return isinstance(admitted, tuple)

    def admit(self, item: Item, result: Checked | Dropped) -> tuple[SimpleNamespace, str] | Dropped | None:
        """The row to write and its split, or why there is none; of equal keys the first good record is kept."""
        if isinstance(result, Dropped):
            return result
        assert isinstance(item, Record), "what a source dropped, the check passes on"
        split = self.options.split
        name = split.allot(item) if split else ""
        if name is None:
            return Dropped(item.key, MISSING, item.where, split.field if split else "", item.source)
        if twin := self._excluded.twin(result):
            return Dropped(item.key, EXCLUDED, item.where, f"looks like {twin}", item.source)
        reason, detail = self.index.refuses(item.key, result, str(item))
        if reason:
            return Dropped(item.key, reason, item.where, detail, item.source)
        if not self.writers:
            self.open(_task_of(item))
        return stored_row(item, result), name

    @abstractmethod
    def write(self, row: SimpleNamespace, name: str) -> None:
        """Write a row to its split."""

    @abstractmethod
    def quarantine(self, dropped: Dropped) -> None:
        """Put a record on the list of those dropped."""

    def report_texts(self) -> dict[str, str]:
        """The report's files."""
        self.report.splits = {name: writer.rows for name, writer in self.writers.items() if name}
        return {YIELD: self.report.to_json(), YIELD_TEXT: self.report.summary() + "\n"}


def _needed(options: Options) -> Filters:
    """What the check must work out for the options' sake."""
    look = options.dedup == "perceptual" or bool(options.exclude)
    return replace(options.filters, exact_hash=options.dedup == "exact", look=look)


def _check(filters: Filters, item: Item | Replayed) -> Checked | Dropped:
    return check_record(item.record if isinstance(item, Replayed) else item, filters)


def _size(item: Item | Replayed) -> int:
    record = item.record if isinstance(item, Replayed) else item
    return len(record.image) + len(record.image2) if isinstance(record, Record) else 0


def stored_row(record: Record, found: Checked) -> SimpleNamespace:
    """With all columns of the record's task as attributes."""
    first, *second = found.pictures
    row = SimpleNamespace(key=record.key, captions=found.captions, source=record.source, **found.columns)
    row.image, (row.width, row.height, row.crc32) = _stored(record.image, first)
    if second:
        row.image2, (row.width2, row.height2, row.crc32_2) = _stored(record.image2, second[0])
    return row


def _stored(image: bytes, picture: CheckedImage) -> tuple[bytes, tuple[int, int, int]]:
    return picture.encoded or image, (picture.width, picture.height, picture.crc32)


def _task_of(record: Record) -> str:
    """The task whose own columns the record has."""
    names = set(record.columns)
    tasks = [task for task, columns in OWN_COLUMNS.items() if {column.name for column in columns} == names]
    return tasks[0] if names else CAPTION
