"""Reading again what a corpus's quarantine lists, and adding what is good now.

All that changes is made in a folder `.retry.partial` inside the corpus, which one rename to `.retry` makes valid; then
its files move to their places. Killed before the rename, a retry did nothing; killed after it, the next one goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.check import Checked, Picture, check_record, exact_hash
from data_tools.corpora import batches
from data_tools.dedup import DUPLICATE_ID, EXCLUDED, Excluded, Seen, row_look, row_size
from data_tools.engines import Map, engine
from data_tools.pipeline import QUARANTINE, SOURCE, YIELD, YIELD_TEXT, Options, needed, stored_row
from data_tools.readers import Source
from data_tools.record import Dropped, Record
from data_tools.reshape.split import MISSING
from data_tools.store.storage import sync_folder, write_text, writing
from data_tools.writer import CorpusWriter
from data_tools.yields import OTHERS, SourceYield, Yield
from mvlm.data.shards.schema import MANIFEST, SCHEMAS, read_manifest
from mvlm.errors import UserError

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
        raise UserError(f"{out} holds no {SOURCE}: give a folder that `python -m data_tools shard` made.") from None
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
            work = _Work(out, stage, options, wanted, run)
            for item, result in run(partial(check_record, demands=needed(options)), source, _size):
                work.take(item, result)
                on_record(_size(item))
            outcome = work.finish(listed)
            sync_folder(stage)
            os.rename(stage, out / READY)
            sync_folder(out)
            _put_in_place(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return outcome


def _size(item: Record | Dropped) -> int:
    return len(item.image) + len(item.image2) if isinstance(item, Record) else 0


class _Work:
    """The records read again, on their way into the staged shards or the new list."""

    def __init__(self, out: Path, stage: Path, options: Options, wanted: Wanted, run: Map) -> None:
        self._out, self._stage, self._options, self._wanted = out, stage, options, wanted
        names = list(options.split.shares) if options.split else [""]
        self._manifests = {name: read_manifest(out / name) for name in names}
        self._writers = {}
        for name, manifest in self._manifests.items():
            writer = CorpusWriter(stage / name, options.shard_bytes, SCHEMAS[manifest.task], manifest.task)
            writer.go_on(manifest.shards, (manifest.rows, manifest.captions, manifest.image_bytes))
            self._writers[name] = writer
        self._excluded = Excluded(options.exclude, stage, run)
        self._seen = Seen(options.dedup, stage)
        rows = self._rows()
        looks = run(row_look, rows, row_size) if options.dedup == "perceptual" else ((row, b"") for row in rows)
        for (key, image), look in looks:
            self._seen.refuses(key, _found(image, look), f"{key} ({out})")
        self._reached: set[str] = set()
        self._dropped: list[Dropped] = []
        self._counts = Yield.from_dict(json.loads((out / YIELD).read_text(encoding="utf-8")))
        self._recovered = 0

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        """Key and, where duplicates are looked for, image of the rows there are."""
        for name, manifest in self._manifests.items():
            for batch in batches(self._out / name, manifest):
                images = batch["image"].to_pylist() if self._options.dedup else [b""] * len(batch)
                yield from zip(batch["key"].to_pylist(), images, strict=True)

    def take(self, item: Record | Dropped, result: Checked | Dropped) -> None:
        self._reached |= {item.where, _file(item.where)}
        dropped = self._refused(item, result)
        if dropped and dropped.reason == DUPLICATE_ID and not self._wanted.names(item.where):
            return  # kept already, from a file that was cut later on
        if dropped:
            self._dropped.append(dropped)
            self._counts.count(item.source, dropped)
            return
        assert isinstance(item, Record) and isinstance(result, Checked)
        name = (self._options.split.allot(item) or "") if self._options.split else ""
        self._writers[name].add(stored_row(item, result))
        self._counts.count(item.source, len(result.captions))
        self._counts.dropped_captions += result.caption_drops
        self._recovered += 1

    def _refused(self, item: Record | Dropped, result: Checked | Dropped) -> Dropped | None:
        if isinstance(result, Dropped):
            return result
        assert isinstance(item, Record), "what a source dropped, the check passes on"
        split = self._options.split
        if split and split.allot(item) is None:
            return Dropped(item.key, MISSING, item.where, split.field, item.source)
        if twin := self._excluded.twin(result):
            return Dropped(item.key, EXCLUDED, item.where, f"looks like {twin}", item.source)
        stored = result.pictures[0].encoded or item.image
        reason, detail = self._seen.refuses(item.key, replace(result, exact=exact_hash([stored])), str(item))
        if reason:
            return Dropped(item.key, reason, item.where, detail, item.source)
        return None

    def finish(self, listed: list[dict[str, str]]) -> Outcome:
        """Stage the shards, the manifests, the list and the yield."""
        for entry in listed:
            if entry["where"] in self._reached:
                _uncount(self._counts, entry)
        for name, writer in self._writers.items():
            if writer.rows > self._manifests[name].rows:
                writer.close()
        self._counts.splits = {name: writer.rows for name, writer in self._writers.items() if name}
        unreached = [entry for entry in listed if entry["where"] not in self._reached]
        now = unreached + [vars(dropped) for dropped in self._dropped]
        write_text(self._stage / QUARANTINE, "".join(json.dumps(entry) + "\n" for entry in now))
        write_text(self._stage / YIELD, self._counts.to_json())
        write_text(self._stage / YIELD_TEXT, self._counts.summary() + "\n")
        return Outcome(len(listed), self._recovered, len(now))


def _file(where: str) -> str:
    """The file in which a record stands."""
    return where.rpartition(":")[0]


def _found(image: bytes, look: bytes) -> Checked:
    """As if a row had just been checked. Equal images are stored as equal bytes, also where they were shrunk."""
    return Checked((), Counter(), (Picture(0, 0, 0, b"", look),), exact=exact_hash([image]))


def _uncount(counts: Yield, entry: dict[str, str]) -> None:
    source = entry.get("source", "")
    parts: list[Yield | SourceYield] = [counts.sources[name] for name in (source, OTHERS) if name in counts.sources]
    for part in [counts, *parts[:1]]:
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
        os.replace(ready / path, out / path)
        sync_folder((out / path).parent)
    shutil.rmtree(ready)
