"""What one task does: it reads a part of the source, checks its records and writes its shards; later it removes rows
that other parts hold too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from mvlm.data.shards.files import Shard
from mvlm.data.shards.schema import CAPTION
from mvlm.errors import UserError

from .corpora import shard_rows
from .engines import Map
from .filters import Checked, check_record
from .marks import MarkWriter, mark_batches, mark_of
from .meta import with_meta
from .origin import opened_source
from .part import Part, PartManifest, SplitPart, shard_stem, within
from .pipeline import Options, stored_row, task_of
from .readers.source import Cuttable
from .record import Dropped, Record
from .report import ShardReport
from .split import NoSplit
from .store.store import Store, part_file
from .writer import CorpusWriter

T = TypeVar("T")
R = TypeVar("R")

Item = Record | Dropped

DROPPED = ".dropped"
"""The file of a part's dropped records: in each line the record's number and what the quarantine says about it."""
MARKS = ".marks"


@dataclass(frozen=True)
class PartJob:
    """What all tasks of a run share."""

    store: Store
    options: Options


def size_of(item: Item) -> int:
    """Bytes of its images."""
    return len(item.image) + len(item.image2) if isinstance(item, Record) else 0


def one_by_one(function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int]) -> Iterator[tuple[T, R]]:
    """The map of a task that works alone."""
    return ((item, function(item)) for item in items)


def run_part(
    job: PartJob, part: Part, run: Map = one_by_one, on_record: Callable[[int], None] = lambda image_bytes: None
) -> PartManifest:
    """Make a part of the source that `job.options.origin` names; its records are checked by `run`."""
    assert job.options.origin is not None
    source = opened_source(json.dumps(dict(job.options.origin)))
    records = source.read(part.start, part.end) if isinstance(source, Cuttable) else source
    return make_part(job, part.number, records, run, lambda: Counter(getattr(source, "unused", ())), on_record)


def make_part(
    job: PartJob,
    number: int,
    records: Iterable[Item],
    run: Map = one_by_one,
    unused: Callable[[], Counter[str]] = Counter,
    on_record: Callable[[int], None] = lambda image_bytes: None,
) -> PartManifest:
    """Make a part of these records.

    Args:
        unused: counts the source's unused files, once all records are read.
    """
    with job.store.for_task() as store:
        making = _Making(store, job.options, number)
        for item, result in run(partial(check_record, filters=job.options.checked), records, size_of):
            making.take(item, result)
            on_record(size_of(item))
        return making.finish(unused())


class _Making:
    """A part in the making."""

    def __init__(self, store: Store, options: Options, number: int) -> None:
        self._store, self._options, self._number = store, options, number
        self._report = ShardReport()
        self._task = ""
        self._writers: dict[str, CorpusWriter] = {}  # by split, once the task is known
        self._read = 0
        self._splits = {name: place for place, name in enumerate(options.names)}
        self._marks = MarkWriter(store.work / part_file(number, MARKS))
        self._dropped = (store.work / part_file(number, DROPPED)).open("w", encoding="utf-8")

    def take(self, item: Item, result: Checked | Dropped) -> None:
        """Write a record or list it as dropped."""
        number, self._read = self._read, self._read + 1
        name = self._allotted(item, result)
        if isinstance(name, Dropped):
            self._report.count(item.source, name)
            self._dropped.write(f"{number}\t{json.dumps(vars(name))}\n")
            return
        assert isinstance(item, Record) and isinstance(result, Checked)
        if not self._writers:
            self._open(task_of(item))
        self._report.count(item.source, len(result.captions))
        self._report.dropped_captions += result.caption_drops
        self._marks.add(mark_of(number, self._splits[name], item, result))
        if self._writers[name].add(stored_row(item, result)):
            _keep(self._store, name, self._writers[name], -1)

    def _allotted(self, item: Item, result: Checked | Dropped) -> str | Dropped:
        """The split of the record, or why it has none."""
        if isinstance(result, Dropped):
            return result
        assert isinstance(item, Record), "what a source dropped, the check passes on"
        try:
            return self._options.split.allot(item) if self._options.split else ""
        except NoSplit as none:
            return Dropped(item.key, none.reason, item.where, none.detail, item.source)

    def _open(self, task: str) -> None:
        if self._options.dedup and task != CAPTION:
            raise UserError(f"--dedup keeps one record per image, but {task} records share images: leave it out.")
        self._task = task
        self._writers = _writers(self._store, self._options, self._number, task)

    def finish(self, unused: Counter[str]) -> PartManifest:
        """Make the part durable, and record that it is finished."""
        self._marks.close()
        self._dropped.close()
        self._report.unused = unused
        others = {}
        for name in (part_file(self._number, ending) for ending in (MARKS, DROPPED)):
            others[name] = (self._store.work / name).stat().st_size
            self._store.keep(name)
        splits = _ended(self._store, self._writers)
        made = PartManifest(self._number, self._task, self._report.as_dict(), splits, others)
        self._store.finish_part(made)
        return made


def prune_again(job: PartJob, item: tuple[Part, PartManifest, Sequence[int]]) -> PartManifest:
    """Like `prune_part`, for a task that may replace one that died after it had begun, or even finished, the part."""
    part, made, numbers = item
    with job.store.for_task() as store:
        there = store.part(part.number)
    if there is None:
        made = run_part(job, part)
    return there if there and there.pruned else prune_part(job, made, numbers)


def prune_part(job: PartJob, made: PartManifest, numbers: Sequence[int]) -> PartManifest:
    """Remove the rows of these records, whose numbers ascend, from a finished part."""
    with job.store.for_task() as store:
        store.reopen_part(made.number)
        away, places = set(numbers), _places(store, made)
        writers = _writers(store, job.options, made.number, made.task)
        for split, (name, before) in enumerate(made.splits.items()):
            rows = (row for shard in before.shards for row in _rows_of(store, name, shard, made.task))
            for number, row in zip(places[split], rows, strict=True):
                if number not in away and writers[name].add(SimpleNamespace(**row)):
                    _keep(store, name, writers[name], -1)
        kept = PartManifest(made.number, made.task, made.report, _ended(store, writers), made.others, digest(numbers))
        for name in made.files.keys() - kept.files.keys():
            store.delete(name)
        store.finish_part(kept)
        return kept


def _rows_of(store: Store, split: str, shard: Shard, task: str) -> Iterator[dict[str, Any]]:
    """The rows of a shard with all that is known about them."""
    path, *tables = (store.local(within(split, file.file)) for file in (shard, *shard.files[len(shard.trained_on) :]))
    return with_meta(shard_rows(path, task), tables, task)


def digest(numbers: Sequence[int]) -> str:
    """A digest of the numbers of the records whose rows were removed; "" if there are none."""
    return hashlib.sha256(",".join(map(str, numbers)).encode()).hexdigest() if numbers else ""


def _places(store: Store, made: PartManifest) -> list[list[int]]:
    """By split, the number of each row's record."""
    places: list[list[int]] = [[] for _ in made.splits]
    for batch in mark_batches(store.local(part_file(made.number, MARKS)), ["number", "split"]):
        for number, split in zip(batch["number"].to_pylist(), batch["split"].to_pylist(), strict=True):
            places[split].append(number)
    return places


def _writers(store: Store, options: Options, number: int, task: str) -> dict[str, CorpusWriter]:
    stem = partial(shard_stem, number)
    return {name: CorpusWriter(store.work / name, options.shard_bytes, task, stem=stem) for name in options.names}


def _keep(store: Store, name: str, writer: CorpusWriter, first: int) -> None:
    """Make the shards from number `first` on durable."""
    for shard in writer.shards[first:]:
        for file in shard.files:
            store.keep(within(name, file.file))


def _ended(store: Store, writers: dict[str, CorpusWriter]) -> dict[str, SplitPart]:
    made = {}
    for name, writer in writers.items():
        known = len(writer.shards)
        manifest = writer.end()
        _keep(store, name, writer, known)
        made[name] = SplitPart(manifest.rows, manifest.captions, manifest.image_bytes, list(writer.shards))
    return made


def dropped_of(store: Store, made: PartManifest) -> Iterator[tuple[int, Dropped]]:
    """The records that a part dropped, each with its number."""
    with store.local(part_file(made.number, DROPPED)).open(encoding="utf-8") as lines:
        for line in lines:
            number, _, content = line.partition("\t")
            yield int(number), Dropped(**json.loads(content))
