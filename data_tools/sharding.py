"""Making a corpus of records, or one a split. Killed at any moment, it resumes when it is started again."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mvlm.data.shards.schema import MANIFEST, Manifest, Shard, read_manifest
from mvlm.errors import UserError
from mvlm.runtime.log import logger
from mvlm.runtime.storage import write_durably

from .dedup import DUPLICATE, EXCLUDED, NEAR_DUPLICATE, Excluded
from .engines import engine
from .filters import TOO_ELONGATED, TOO_SMALL, Checked
from .origin import deciding
from .pipeline import QUARANTINE, SOURCE, YIELD, Options, Pipeline, stored_row
from .record import Dropped
from .report import ShardReport
from .resume import Changed, Item, Replayed, SourceDigest, State, replayed, versions
from .store.destination import open_store
from .store.store import Finished, Store

WANTED = {DUPLICATE, NEAR_DUPLICATE, EXCLUDED, TOO_SMALL, TOO_ELONGATED}
"""Reasons that the user asked for, which count against no tolerance."""

USUAL = ("image is missing", "download failed", "download refused")
"""How reasons begin that are usual with downloads; they count against none either, unless nothing is left."""


def shard(
    records: Iterable[Item],
    out: Path | str,
    options: Options,
    on_record: Callable[[int], None] = lambda image_bytes: None,
) -> ShardReport:
    """Write `records` as a corpus to the folder or URL `out`, or as one corpus a split inside it.

    The bytes written are a function of the records, their order and the options alone. Beside the corpus stand
    `quarantine.jsonl` (key, reason, where and detail of each record dropped), `yield.json` and `yield.txt`, and
    `source.json`. With `options.origin` a run that was killed is resumed; `records` must then begin anew whenever
    they are iterated.

    Raises:
        UserError: `out` cannot be written, more than the tolerated share was dropped, or a split is left empty.
    """
    with open_store(out, options.origin is not None) as store:
        try:
            states = [State.from_bytes(content) for content in store.begin(_plan(records, options))]
        except Finished as finished:
            return ShardReport.from_dict(json.loads(finished.read(YIELD)))
        files = {name: size for state in states for name, size in _placed(state.split, state.shard).items()}
        if not all(store.has(name, size) for name, size in files.items()):
            states = _afresh(store, out, "lost a shard")
        with engine(options.engine, options.workers, options.ray_address) as run:
            excluded = Excluded(options.exclude, store.work, run)
            while True:
                work = _Sharding(store, out, options, excluded, states)
                try:
                    work.run(run, work.left(records), on_record)
                except Changed:
                    work.abandon()
                    states = _afresh(store, out, "read a source that has changed since")
                else:
                    return work.finish(Counter(getattr(records, "unused", ())))


def _plan(records: Iterable[Item], options: Options) -> dict[str, Any] | None:
    """All that decides the bytes, as JSON would give it back."""
    if options.origin is None:
        return None
    plan = {
        "origin": deciding(options.origin),
        "size": getattr(records, "size", None),
        "split": options.split and [list(options.split.shares.items()), options.split.field],
        "shard_bytes": options.shard_bytes,
        "filters": asdict(options.filters),
        "dedup": options.dedup,
        "exclude": [read_manifest(folder).fingerprint for folder in options.exclude],
        "versions": versions(),
    }
    return json.loads(json.dumps(plan))  # type: ignore[no-any-return]


def _afresh(store: Store, out: Path | str, reason: str) -> list[State]:
    logger("data_tools").warning(f"The run of {out} that was killed {reason}: starting afresh.")
    store.restart()
    return []


def _placed(split: str, shard: Shard) -> dict[str, int]:
    """The files of a shard below the folder that is written, and their bytes."""
    return {f"{split}/{file.file}" if split else file.file: file.bytes for file in shard.files}


class _Sharding(Pipeline):
    """Into a new corpus, or one a split, with a state for a restart at the end of each shard."""

    def __init__(
        self, store: Store, out: Path | str, options: Options, excluded: Excluded, states: list[State]
    ) -> None:
        self._last = states[-1] if states else None
        report = ShardReport.from_dict(self._last.report) if self._last else ShardReport()
        super().__init__(store.work, options, excluded, report, restarts=options.origin is not None)
        self._store, self._out = store, out
        self._consumed = self._last.consumed if self._last else 0
        self._number = 0  # of the record that is taken
        self._pending: dict[str, list[int]] = {name: [] for name in options.names}
        self._digest = SourceDigest()
        self._quarantine = (store.work / QUARANTINE).open("w", encoding="utf-8")
        self._lines: list[str] = []
        for number, state in enumerate(states):
            self.open(state.task)
            writer = self.writers[state.split]
            writer.resume([*writer.shards, state.shard], state.finished)
            self._quarantine.writelines(state.quarantine)
            self.index.restore(store.seen(number))

    def left(self, records: Iterable[Item]) -> Iterator[Item | Replayed]:
        """The records that still have to be checked."""
        return replayed(records, self._last, self._digest)

    def take(self, item: Item | Replayed, result: Checked | Dropped) -> bool:
        if isinstance(item, Replayed):
            if isinstance(result, Dropped):
                raise Changed
            self._number = item.number
            self.write(stored_row(item.record, result), item.split)
            return True
        self._number = self._consumed
        self._consumed += 1
        self._digest.add(item)
        if isinstance(result, Checked):
            self.report.dropped_captions += result.caption_drops
        return super().take(item, result)

    def quarantine(self, dropped: Dropped) -> None:
        line = json.dumps(vars(dropped)) + "\n"
        self._lines.append(line)
        self._quarantine.write(line)

    def write(self, row: SimpleNamespace, name: str) -> None:
        self._pending[name].append(self._number)
        if self.writers[name].add(row):
            self._pending[name] = []
            self._checkpoint(name)

    def _checkpoint(self, name: str) -> None:
        """A shard is finished: make it last, then what a restart must know."""
        shard = self.writers[name].shards[-1]
        self._keep(name, shard)
        if self.options.origin is None:
            return
        state = State(
            consumed=self._consumed,
            digest=str(self._digest),
            task=self.writers[name].task,
            report=self.report.as_dict(),
            split=name,
            shard=shard,
            finished=self.writers[name].finished,
            pending=self._pending,
            quarantine=self._lines,
        )
        self._store.add_state(state.to_bytes(), self.index.new())
        self._lines = []

    def abandon(self) -> None:
        """Leave the work to a run afresh."""
        self._quarantine.close()

    def finish(self, unused: Counter[str]) -> ShardReport:
        """Write what is left and let the corpus appear; `unused` are the source's files of no record, by the reason."""
        self.report.unused = unused
        self._quarantine.flush()
        os.fsync(self._quarantine.fileno())
        self._quarantine.close()
        self._check_tolerance()
        for name in self.options.names:
            if name not in self.writers or not self.writers[name].rows:
                self._store.discard()
                raise UserError(_nothing_left(self.report, self._out, name))
        manifests = {f"{name}/{MANIFEST}" if name else MANIFEST: self._end(name) for name in self.options.names}
        texts = self.report_texts()
        if self.options.origin is not None:
            texts[SOURCE] = json.dumps(dict(self.options.origin), indent=1) + "\n"
        for name, text in (texts | {name: manifest.to_json() for name, manifest in manifests.items()}).items():
            write_durably(self._store.work / name, text)
        self._store.finish([QUARANTINE, *texts, *manifests])
        return self.report

    def _end(self, name: str) -> Manifest:
        writer = self.writers[name]
        known = len(writer.shards)
        manifest = writer.end()
        for shard in writer.shards[known:]:
            self._keep(name, shard)
        return manifest

    def _keep(self, name: str, shard: Shard) -> None:
        for file in _placed(name, shard):
            self._store.keep(file)

    def _check_tolerance(self) -> None:
        report, tolerate = self.report, self.options.tolerate
        dropped = {
            reason: count
            for reason, count in report.dropped.items()
            if reason not in WANTED and not reason.startswith(USUAL)
        }
        total = sum(dropped.values())
        if not report.dropped or (report.kept and total <= tolerate * report.read):
            return
        beside = self._store.reject(QUARANTINE)
        self._store.discard()
        reason, count = Counter(dropped or report.dropped).most_common(1)[0]
        remedy = f", or raise --tolerate above {tolerate:g}" if report.kept else ""
        raise UserError(
            f"{self._out} was not made, because {total or report.read} of {report.read} records were dropped, "
            f"{count} of them for {reason!r}: mend those listed in {beside} beside it{remedy}."
        )


def _nothing_left(report: ShardReport, out: Path | str, name: str) -> str:
    if not report.read:
        return f"{out} was not made, because the source holds no records: check its path."
    return (
        f"{out} was not made, because none of {report.kept} records fell into the split {name!r}, which a hash of each "
        "decides: raise its share, or add records."
    )
