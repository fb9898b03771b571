"""Reading again what a corpus's quarantine lists, and adding what is good now.

All that changes is made in a folder `.retry.partial` inside the corpus, which one rename to `.retry` makes valid; then
its files move to their places. Killed before the rename, a retry did nothing; killed after it, the next one resumes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mvlm.data.shards.schema import MANIFEST, read_manifest
from mvlm.errors import UserError
from mvlm.runtime.storage import publish, sync, write_durably

from ..corpora import batches
from ..dedup import DUPLICATE_ID, Excluded, row_look, row_size
from ..engines import Map, engine
from ..filters import Checked, CheckedImage, exact_hash
from ..pipeline import QUARANTINE, SOURCE, YIELD, Options, Pipeline
from ..readers import Source
from ..record import Dropped, Record
from ..report import OTHERS, ShardReport, SourceReport
from ..resume import Item, Replayed
from ..store.disk import writing

PARTIAL, READY = ".retry.partial", ".retry"


@dataclass(frozen=True)
class Outcome:
    """Records listed before; of those, records that are good now; records listed now."""

    listed: int
    recovered: int
    left: int


class Wanted:
    """The records listed, by `where`, and all of a file that was listed as a whole, because it was cut short."""

    def __init__(self, listed: Iterable[str]) -> None:
        self._listed = frozenset(listed)

    def __contains__(self, where: object) -> bool:
        text = str(where)
        return text in self._listed or _file(text) in self._listed

    def names(self, where: str) -> bool:
        """Whether this very record was listed."""
        return where in self._listed


def read_origin(out: Path) -> dict[str, Any]:
    """What the corpus says of its source.

    Raises:
        UserError: it says nothing, because it is no corpus made by `shard`.
    """
    try:
        saved = json.loads((out / SOURCE).read_text(encoding="utf-8"))
        return {name: saved[name] for name in ("source", "paths", "options", "writing")}
    except FileNotFoundError:
        raise UserError(f"{out} holds no {SOURCE}: give a folder that `mvlm-data shard` made.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / SOURCE} is not valid ({type(error).__name__}: {error}): shard again.") from None


@contextmanager
def only_retry(out: Path) -> Iterator[None]:
    """Keep other retries of `out` away, having ended one that was killed when it had done its work."""
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        _put_in_place(out)
        yield
    except BlockingIOError:
        raise UserError(f"Another process is retrying {out} now: wait for it.") from None
    finally:
        os.close(handle)


def retry(
    source: Source, out: Path, options: Options, on_record: Callable[[int], None] = lambda image_bytes: None
) -> Outcome:
    """Read the records again that `out` lists as dropped; add the good ones as further shards, and list the others.

    The rows that were there stay, and stay first. A listed record that the source no longer gives stays listed. Call it
    within `only_retry`.

    Raises:
        UserError: a corpus is damaged, or there is no room.
    """
    listed = [json.loads(line) for line in (out / QUARANTINE).read_text(encoding="utf-8").splitlines()]
    wanted = Wanted(entry["where"] for entry in listed)
    source.only = wanted
    stage = out / PARTIAL
    try:
        with writing(out), engine(options.engine, options.workers, options.ray_address) as run:
            stage.mkdir()
            work = _Retry(out, stage, options, wanted, run)
            work.run(run, source, on_record)
            outcome = work.finish(listed)
            sync(stage)
            os.rename(stage, out / READY)
            sync(out)
            _put_in_place(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return outcome


class _Retry(Pipeline):
    """Into staged shards behind those of finished corpora."""

    def __init__(self, out: Path, stage: Path, options: Options, wanted: Wanted, run: Map) -> None:
        report = ShardReport.from_dict(json.loads((out / YIELD).read_text(encoding="utf-8")))
        super().__init__(stage, options, Excluded(options.exclude, stage, run), report)
        self._out, self._wanted = out, wanted
        self._manifests = {name: read_manifest(out / name) for name in options.names}
        for name, manifest in self._manifests.items():
            self.open(manifest.task)
            self.writers[name].resume(manifest.shards, (manifest.rows, manifest.captions, manifest.image_bytes))
        rows = self._rows()
        looks = run(row_look, rows, row_size) if options.dedup == "perceptual" else ((row, b"") for row in rows)
        for (key, image), look in looks:
            self.index.refuses(key, _found(image, look), f"{key} ({out})")
        self._reached: set[str] = set()
        self._dropped: list[Dropped] = []
        self._recovered = 0

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        """Key and, where duplicates are looked for, image of the rows there are."""
        for name, manifest in self._manifests.items():
            for batch in batches(self._out / name, manifest):
                images = batch["image"].to_pylist() if self.options.dedup else [b""] * len(batch)
                yield from zip(batch["key"].to_pylist(), images, strict=True)

    def take(self, item: Item | Replayed, result: Checked | Dropped) -> bool:
        assert not isinstance(item, Replayed)
        self._reached |= {item.where, _file(item.where)}
        kept = super().take(item, result)
        if kept and isinstance(result, Checked):
            self.report.dropped_captions += result.caption_drops
            self._recovered += 1
        return kept

    def admit(self, item: Item, result: Checked | Dropped) -> tuple[SimpleNamespace, str] | Dropped | None:
        """The same, but None for a record that is kept already, from a file that was cut later on."""
        if isinstance(item, Record) and isinstance(result, Checked):
            result = replace(result, exact=exact_hash([result.pictures[0].encoded or item.image]))
        admitted = super().admit(item, result)
        repeats = isinstance(admitted, Dropped) and admitted.reason == DUPLICATE_ID
        return None if repeats and not self._wanted.names(item.where) else admitted

    def write(self, row: SimpleNamespace, name: str) -> None:
        self.writers[name].add(row)

    def quarantine(self, dropped: Dropped) -> None:
        self._dropped.append(dropped)

    def finish(self, listed: Sequence[dict[str, str]]) -> Outcome:
        """Stage the shards, the manifests, the list and the report."""
        for entry in listed:
            if entry["where"] in self._reached:
                _uncount(self.report, entry)
        for name, writer in self.writers.items():
            if writer.rows > self._manifests[name].rows:
                writer.close()
        unreached = [entry for entry in listed if entry["where"] not in self._reached]
        now = unreached + [vars(dropped) for dropped in self._dropped]
        texts = {QUARANTINE: "".join(json.dumps(entry) + "\n" for entry in now)} | self.report_texts()
        for name, text in texts.items():
            write_durably(self.folder / name, text)
        return Outcome(len(listed), self._recovered, len(now))


def _file(where: str) -> str:
    """The file in which a record stands."""
    return where.rpartition(":")[0]


def _found(image: bytes, look: bytes) -> Checked:
    """As if a row had just been checked. Equal images are stored as equal bytes, also where they were shrunk."""
    return Checked((), Counter(), (CheckedImage(0, 0, 0, b"", look),), exact=exact_hash([image]))


def _uncount(report: ShardReport, entry: dict[str, str]) -> None:
    source = entry.get("source", "")
    parts: list[ShardReport | SourceReport] = [
        report.sources[name] for name in (source, OTHERS) if name in report.sources
    ]
    for part in [report, *parts[:1]]:
        part.read -= 1
        part.dropped[entry["reason"]] -= 1
        part.dropped += Counter()  # forget reasons that no record is left with


def _put_in_place(out: Path) -> None:
    """Move what a retry staged: the shards before the manifests that name them, and those before the list."""
    ready = out / READY
    if not ready.is_dir():
        return
    staged = [path.relative_to(ready) for path in ready.rglob("*") if path.is_file()]
    for path in sorted(staged, key=lambda path: (path.suffix not in (".arrow", ".index"), path.name != MANIFEST, path)):
        publish(ready / path, out / path)
    shutil.rmtree(ready)
