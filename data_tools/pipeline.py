"""From records to a corpus: check each, allot it to a split, write it; count and list what was dropped.

Killed at any moment, a run goes on when it is started again: see `data_tools.resume`.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from data_tools.check import SOUND, TOO_ELONGATED, TOO_SMALL, Checked, Demands, check_record
from data_tools.dedup import DUPLICATE, EXCLUDED, NEAR_DUPLICATE, Excluded, Seen
from data_tools.engines import engine
from data_tools.record import Dropped, Record
from data_tools.reshape.split import MISSING, Split
from data_tools.resume import Again, Changed, Item, State, Trail, replayed, versions
from data_tools.rows import stored_row, task_of
from data_tools.store.storage import Finished, Store, opened, write_text
from data_tools.writer import CorpusWriter
from data_tools.yields import Yield
from mvlm.data.shards.schema import CAPTION, MANIFEST, SCHEMAS, Manifest, Shard, read_manifest
from mvlm.errors import UserError

QUARANTINE = "quarantine.jsonl"
YIELD = "yield.json"
YIELD_TEXT = "yield.txt"
SOURCE = "source.json"

WANTED = {DUPLICATE, NEAR_DUPLICATE, EXCLUDED, TOO_SMALL, TOO_ELONGATED}
"""Reasons that the user asked for, which count against no tolerance."""

USUAL = ("image is missing", "download failed")
"""How reasons begin that are usual with downloads; they count against none either, unless nothing is left."""


@dataclass(frozen=True)
class Options:
    """How a corpus is written. All but the engine, the workers and the tolerance decide its bytes."""

    split: Split | None = None
    shard_bytes: int = 256_000_000
    workers: int = 1
    tolerate: float = 0.5  # share of the records that may be dropped
    demands: Demands = SOUND
    dedup: str = ""  # "exact" or "perceptual": of equal images the first is kept
    exclude: tuple[Path, ...] = ()  # corpora none of whose images may come in
    engine: str = "local"
    ray_address: str | None = None
    origin: Mapping[str, Any] | None = None  # what the records are of, for source.json; a restart needs it


def shard(
    records: Iterable[Item],
    out: Path | str,
    options: Options,
    on_record: Callable[[int], None] = lambda image_bytes: None,
) -> Yield:
    """Write `records` as a corpus to the folder or URL `out`, or as one corpus a split inside it.

    The bytes written are a function of the records, their order and the options alone. Beside the corpus stand
    `quarantine.jsonl` (key, reason, where and detail of each record dropped), `yield.json` and `yield.txt`, and
    `source.json`. With `options.origin` a run that was killed goes on; `records` must then begin anew whenever
    they are iterated.

    Raises:
        UserError: `out` cannot be written, more than the tolerated share was dropped, or a split is left empty.
    """
    demands = needed(options)
    with opened(out, options.origin is not None) as store:
        try:
            states = [State.from_bytes(content) for content in store.begin(_plan(records, options))]
        except Finished as finished:
            return Yield.from_dict(json.loads(finished.read(YIELD)))
        files = {name: size for state in states for name, size in _placed(state.split, state.shard).items()}
        if not all(store.has(name, size) for name, size in files.items()):
            states = _afresh(store, out, "lost a shard")
        with engine(options.engine, options.workers, options.ray_address) as run:
            excluded = Excluded(options.exclude, store.work, run)
            while True:
                work = _Work(store, out, options, excluded, states)
                try:
                    for again, result in run(partial(_check, demands), work.left(records), _size):
                        work.take(again, result)
                        on_record(_size(again))
                except Changed:
                    work.abandon()
                    states = _afresh(store, out, "read a source that has changed since")
                else:
                    return work.finish(Counter(getattr(records, "unused", ())))


def needed(options: Options) -> Demands:
    """What the check must work out for the options' sake."""
    look = options.dedup == "perceptual" or bool(options.exclude)
    return replace(options.demands, exact_hash=options.dedup == "exact", look=look)


def _plan(records: Iterable[Item], options: Options) -> dict[str, Any] | None:
    """All that decides the bytes, as JSON would give it back."""
    if options.origin is None:
        return None
    plan = {
        "origin": dict(options.origin),
        "size": getattr(records, "size", None),
        "split": options.split and [list(options.split.shares.items()), options.split.field],
        "shard_bytes": options.shard_bytes,
        "demands": asdict(options.demands),
        "dedup": options.dedup,
        "exclude": [read_manifest(folder).fingerprint for folder in options.exclude],
        "versions": versions(),
    }
    return json.loads(json.dumps(plan))  # type: ignore[no-any-return]


def _afresh(store: Store, out: Path | str, reason: str) -> list[State]:
    print(f"The run of {out} that was killed {reason}: starting afresh.", file=sys.stderr)
    store.restart()
    return []


def _check(demands: Demands, item: Item | Again) -> Checked | Dropped:
    return check_record(item.record if isinstance(item, Again) else item, demands)


def _size(item: Item | Again) -> int:
    record = item.record if isinstance(item, Again) else item
    return len(record.image) + len(record.image2) if isinstance(record, Record) else 0


def _placed(split: str, shard: Shard) -> dict[str, int]:
    """The files of a shard below the folder that is written, and their bytes."""
    return {f"{split}/{file.file}" if split else file.file: file.bytes for file in shard.files}


class _Work:
    """The records on their way into the corpora, and all that is known of them."""

    def __init__(
        self, store: Store, out: Path | str, options: Options, excluded: Excluded, states: list[State]
    ) -> None:
        self._store, self._out, self._options, self._excluded = store, out, options, excluded
        self._last = states[-1] if states else None
        self._consumed = self._last.consumed if self._last else 0
        self._counts = Yield.from_dict(self._last.counts) if self._last else Yield()
        self._names = list(options.split.shares) if options.split else [""]
        self._pending: dict[str, list[int]] = {name: [] for name in self._names}
        self._trail = Trail()
        self._seen = Seen(options.dedup, store.work, restarts=options.origin is not None)
        self._writers: dict[str, CorpusWriter] = {}
        self._task = ""
        self._quarantine = (store.work / QUARANTINE).open("w", encoding="utf-8")
        self._lines: list[str] = []
        for number, state in enumerate(states):
            self._restore(state)
            self._seen.restore(store.seen(number))

    def _restore(self, state: State) -> None:
        self._open(state.task)
        writer = self._writers[state.split]
        writer.go_on([*writer.shards, state.shard], state.finished)
        self._quarantine.writelines(state.quarantine)

    def _open(self, task: str) -> None:
        if self._options.dedup and task != CAPTION:
            raise UserError(f"--dedup keeps one record an image, but {task} records share images: leave it out.")
        if not self._writers:
            self._task = task
            self._writers = {
                name: CorpusWriter(self._store.work / name, self._options.shard_bytes, SCHEMAS[task], task)
                for name in self._names
            }

    def left(self, records: Iterable[Item]) -> Iterator[Item | Again]:
        """The records that still have to be checked."""
        return replayed(records, self._last, self._trail)

    def take(self, item: Item | Again, result: Checked | Dropped) -> None:
        """Write a record or list it as dropped."""
        if isinstance(item, Again):
            if isinstance(result, Dropped):
                raise Changed
            self._write(stored_row(item.record, result), item.split, item.number)
            return
        number = self._consumed
        self._consumed += 1
        self._trail.add(item)
        kept = self._admit(item, result)
        if isinstance(result, Checked):
            self._counts.dropped_captions += result.caption_drops
        if isinstance(kept, Dropped):
            self._counts.count(item.source, kept)
            line = json.dumps(vars(kept)) + "\n"
            self._lines.append(line)
            self._quarantine.write(line)
        else:
            row, name = kept
            self._counts.count(item.source, len(row.captions))
            assert isinstance(item, Record)
            self._open(task_of(item))
            self._write(row, name, number)

    def _admit(self, item: Item, result: Checked | Dropped) -> tuple[SimpleNamespace, str] | Dropped:
        """The row to write and its split, or why there is none; of equal keys the first good record is kept."""
        if isinstance(result, Dropped):
            return result
        assert isinstance(item, Record), "what a source dropped, the check passes on"
        split = self._options.split
        name = split.allot(item) if split else ""
        if name is None:
            return Dropped(item.key, MISSING, item.where, split.field if split else "", item.source)
        if twin := self._excluded.twin(result):
            return Dropped(item.key, EXCLUDED, item.where, f"looks like {twin}", item.source)
        reason, detail = self._seen.refuses(item.key, result, str(item))
        if reason:
            return Dropped(item.key, reason, item.where, detail, item.source)
        return stored_row(item, result), name

    def _write(self, row: SimpleNamespace, name: str, number: int) -> None:
        self._pending[name].append(number)
        if self._writers[name].add(row):
            self._pending[name] = []
            self._checkpoint(name)

    def _checkpoint(self, name: str) -> None:
        """A shard is finished: make it last, then what a restart must know."""
        shard = self._writers[name].shards[-1]
        self._keep(name, shard)
        if self._options.origin is None:
            return
        state = State(
            consumed=self._consumed,
            trail=str(self._trail),
            task=self._task,
            counts=self._counts.as_dict(),
            split=name,
            shard=shard,
            finished=self._writers[name].finished,
            pending=self._pending,
            quarantine=self._lines,
        )
        self._store.add_state(state.to_bytes(), self._seen.new())
        self._lines = []

    def abandon(self) -> None:
        """Leave the work to a run afresh."""
        self._quarantine.close()

    def finish(self, unused: Counter[str]) -> Yield:
        """Write what is left and let the corpus appear; `unused` are the source's files of no record, by the reason."""
        self._counts.unused = unused
        self._quarantine.flush()
        os.fsync(self._quarantine.fileno())
        self._quarantine.close()
        self._check_tolerance()
        for name in self._names:
            if name not in self._writers or not self._writers[name].rows:
                self._store.discard()
                raise UserError(_nothing_left(self._counts, self._out, name))
        manifests = {f"{name}/{MANIFEST}" if name else MANIFEST: self._end(name) for name in self._names}
        self._counts.splits = {name: writer.rows for name, writer in self._writers.items() if name}
        texts = {YIELD: self._counts.to_json(), YIELD_TEXT: self._counts.summary() + "\n"}
        if self._options.origin is not None:
            texts[SOURCE] = json.dumps(dict(self._options.origin), indent=1) + "\n"
        for name, text in (texts | {name: manifest.to_json() for name, manifest in manifests.items()}).items():
            write_text(self._store.work / name, text)
        self._store.finish([QUARANTINE, *texts, *manifests])
        return self._counts

    def _end(self, name: str) -> Manifest:
        writer = self._writers[name]
        known = len(writer.shards)
        manifest = writer.end()
        for shard in writer.shards[known:]:
            self._keep(name, shard)
        return manifest

    def _keep(self, name: str, shard: Shard) -> None:
        for file in _placed(name, shard):
            self._store.keep(file)

    def _check_tolerance(self) -> None:
        counts, tolerate = self._counts, self._options.tolerate
        dropped = {
            reason: count
            for reason, count in counts.dropped.items()
            if reason not in WANTED and not reason.startswith(USUAL)
        }
        total = sum(dropped.values())
        if not counts.dropped or (counts.kept and total <= tolerate * counts.read):
            return
        beside = self._store.reject(QUARANTINE)
        self._store.discard()
        reason, count = Counter(dropped or counts.dropped).most_common(1)[0]
        remedy = f", or raise --tolerate above {tolerate:g}" if counts.kept else ""
        raise UserError(
            f"{self._out} was not made, because {total or counts.read} of {counts.read} records were dropped, "
            f"{count} of them for {reason!r}: mend those listed in {beside} beside it{remedy}."
        )


def _nothing_left(counts: Yield, out: Path | str, name: str) -> str:
    if not counts.read:
        return f"{out} was not made, because the source holds no records: check its path."
    return (
        f"{out} was not made, because none of {counts.kept} records fell into the split {name!r}, which a hash of each "
        "decides: raise its share, or add records."
    )
