"""Reading again what a corpus's quarantine lists, and adding what is good now.

All changes are prepared in a folder `.retry.partial` inside the corpus, which one rename to `.retry` makes valid; then
its files move to their places. A retry killed before the rename did nothing; after it, the next retry completes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.data.shards.files import Shards
from mvlm.data.shards.in_place import resolved
from mvlm.data.shards.schema import MANIFEST, SOURCE, YIELD, Manifest, read_manifest
from mvlm.errors import UserError
from mvlm.runtime.storage import publish, sync, write_durably

from ..corpora import batches
from ..dedup import NEAR_DUPLICATE, DedupIndex, excluded_pictures, row_perceptual_hash, row_size
from ..engines import Map, engine
from ..filters import exact_hash
from ..join import find_losers, find_pairs, total_report, write_dropped
from ..marks import RowMark, id_digest
from ..part import PartManifest
from ..pipeline import QUARANTINE, YIELD_TEXT, Options
from ..readers.source import Source
from ..record import Record
from ..report import OTHERS, ShardReport, SourceReport
from ..store.disk import ELSEWHERE, writing
from ..store.folder import FolderStore
from ..store.store import STATE
from ..task import Item, PartJob, make_part, prune_part

PARTIAL, READY = ".retry.partial", ".retry"


@dataclass(frozen=True)
class Outcome:
    """Numbers of records: listed before, added because they are good now, and listed now."""

    listed: int
    recovered: int
    left: int


class Wanted:
    """The records listed, by `where`, and all those of a file that was listed as a whole because it was cut short."""

    def __init__(self, listed: Iterable[str]) -> None:
        self._listed = frozenset(listed)

    def __contains__(self, where: object) -> bool:
        text = str(where)
        return text in self._listed or _file(text) in self._listed


def read_origin(out: Path, place: Path | str) -> dict[str, Any]:
    """What the corpus of `place`, whose files are in `out`, says about its source.

    Raises:
        UserError: it says nothing, because `shard` did not make it, or nothing valid.
    """
    try:
        saved = json.loads((out / SOURCE).read_text(encoding="utf-8"))
        return {name: saved[name] for name in ("source", "paths", "options", "writing")}
    except FileNotFoundError:
        raise UserError(f"{place} holds no {SOURCE}: give a folder that `mvlm-data shard` made.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}/{SOURCE} is not valid ({type(error).__name__}: {error}): shard again.") from None


@contextmanager
def only_retry(out: Path) -> Iterator[None]:
    """Keep other retries of `out` away, after completing one that was killed after its rename."""
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


def retry(source: Source, out: Path, options: Options, on_record: Callable[[int], None]) -> Outcome:
    """Read the records again that `out` lists as dropped; add the good ones as further shards, and list the others.

    Existing rows stay, and stay first; what is read again becomes one more part. A listed record that the source no
    longer gives stays listed, and so does a near duplicate: the image that it resembles may have been shrunk since they
    were compared, and would look different now. Call it within `only_retry`.

    Raises:
        UserError: a corpus is damaged, or there is no room.
    """
    listed = [json.loads(line) for line in (out / QUARANTINE).read_text(encoding="utf-8").splitlines()]
    near = frozenset(entry["where"] for entry in listed if entry["reason"] == NEAR_DUPLICATE)
    source.only = Wanted(entry["where"] for entry in listed if entry["where"] not in near)
    stage = out / PARTIAL
    try:
        with writing(out, ELSEWHERE), engine(options.engine, options.workers, options.ray_address) as run:
            stage.mkdir()
            outcome = _Retry(out, stage, options, near, run).run(source, listed, on_record)
            shutil.rmtree(stage / STATE)
            sync(stage)
            os.rename(stage, out / READY)
            sync(out)
            _put_in_place(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return outcome


class _Retry:
    """A retry of finished corpora; it stages the shards that will follow theirs."""

    def __init__(self, out: Path, stage: Path, options: Options, near: Container[str], run: Map) -> None:
        self._out, self._stage, self._options, self._near, self._map = out, stage, options, near, run
        self._manifests = {name: read_manifest(out / name) for name in options.names}
        self._index = DedupIndex(options.dedup, stage)
        self._excluded = excluded_pictures(options.exclude, stage, run)
        self._ids: set[bytes] = set()  # of the existing rows
        rows = self._rows()
        looks = (
            run(row_perceptual_hash, rows, row_size) if options.dedup == "perceptual" else ((row, b"") for row in rows)
        )
        for place, ((key, image), look) in enumerate(looks, len(self._excluded)):
            mark = RowMark(0, 0, key, str(out), "", 0, [], id_digest(key), exact_hash([image]), look, b"")
            self._ids.add(mark.id)
            self._index.keep(mark, place)
        self._reached: set[str] = set()

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        """Key and, if duplicates are looked for, image of the existing rows."""
        for name, manifest in self._manifests.items():
            for batch in batches(self._out / name, manifest):
                images = [b""] * len(batch)
                if self._options.dedup:
                    images = [bytes(resolved(image.as_buffer())) for image in batch["image"]]
                yield from zip(batch["key"].to_pylist(), images, strict=True)

    def run(self, source: Source, listed: Sequence[dict[str, str]], on_record: Callable[[int], None]) -> Outcome:
        """Stage the shards, the manifests, the list and the report."""
        job = PartJob(FolderStore(self._stage, self._out), self._options)
        made = make_part(job, self._next_part(), self._records(source), self._map, on_record=on_record)
        pairs = find_pairs(job.store, [made], [self._excluded, self._index.pictures], self._options)
        losers = find_losers(job.store, [made], self._index, self._excluded, pairs, None)
        if losers:
            made = prune_part(job, made, [loser.number for loser in losers[made.number]])
        self._write_manifests(made)
        unreached = [entry for entry in listed if entry["where"] not in self._reached]
        with (self._stage / QUARANTINE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in unreached)
            left = len(unreached) + write_dropped(file, job.store, [made], losers)
        report = ShardReport.from_dict(json.loads((self._out / YIELD).read_text(encoding="utf-8")))
        for entry in listed:
            if entry["where"] in self._reached:
                _uncount(report, entry)
        report.add(total_report([made], losers))
        recovered = {name: of_it.rows for name, of_it in made.splits.items()}
        report.splits = {
            name: manifest.rows + recovered.get(name, 0) for name, manifest in self._manifests.items() if name
        }
        for name, text in {YIELD: report.to_json(), YIELD_TEXT: report.text()}.items():
            write_durably(self._stage / name, text)
        sync(self._stage / QUARANTINE)
        return Outcome(len(listed), sum(recovered.values()), left)

    def _next_part(self) -> int:
        """The number of the new part, which no part of the corpora has."""
        files = (shard.file for manifest in self._manifests.values() for shard in manifest.shards)
        numbers = (found for file in files if (found := re.match(r"\d+", file)))
        return 1 + max((int(number[0]) for number in numbers), default=-1)

    def _records(self, source: Source) -> Iterator[Item]:
        """The records to look at again: neither near duplicates nor those whose id is kept already."""
        for item in source:
            self._reached.add(_file(item.where))
            is_there = isinstance(item, Record) and id_digest(item.key) in self._ids
            if not is_there and item.where not in self._near:
                self._reached.add(item.where)
                yield item

    def _write_manifests(self, made: PartManifest) -> None:
        for name, more in made.splits.items():
            old = self._manifests[name]
            if more.rows:
                sums = old.rows + more.rows, old.captions + more.captions, old.image_bytes + more.image_bytes
                manifest = Manifest(*sums, Shards([*old.shards, *more.shards]), old.task)
                write_durably(self._stage / name / MANIFEST, manifest.to_json())


def _file(where: str) -> str:
    """The file that a record is in."""
    return where.rpartition(":")[0]


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
    for path in sorted(
        staged, key=lambda path: (path.suffix not in (".arrow", ".index", ".parquet"), path.name != MANIFEST, path)
    ):
        publish(ready / path, out / path)
    shutil.rmtree(ready)
