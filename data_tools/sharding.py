"""Making a corpus from records, or one per split: parts are made independently, then their manifests are joined.

A run that was killed at any moment resumes when it is started again: finished parts stay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mvlm.data.shards.schema import EMPTY_SPLIT, MANIFEST, SOURCE, YIELD
from mvlm.errors import UserError
from mvlm.runtime.storage import sync, write_durably

from .corpora import manifest_at
from .dedup import DUPLICATE, EXCLUDED, NEAR_DUPLICATE, DedupIndex, excluded_pictures
from .engines import Map, engine
from .engines.chunks import CHUNK_BYTES
from .filters import TOO_ELONGATED, TOO_SMALL
from .join import Losers, find_losers, find_pairs, find_suspects, manifests, total_report, write_dropped
from .origin import deciding
from .part import Part, PartManifest, chosen, cut, within
from .pipeline import QUARANTINE, YIELD_TEXT, Options
from .readers.source import Cuttable, Source
from .report import ShardReport
from .split import Split
from .store.destination import open_store
from .store.store import Finished, Store
from .task import Item, PartJob, digest, make_part, prune_again, prune_part, run_part
from .versions import versions

WANTED = {DUPLICATE, NEAR_DUPLICATE, EXCLUDED, TOO_SMALL, TOO_ELONGATED}
"""Reasons that the user asked for, which do not count against `--tolerate`."""

USUAL = ("image is missing", "download failed", "download refused")
"""How reasons begin that are usual with downloads; they do not count either, unless nothing is left."""


def shard(
    records: Iterable[Item],
    out: Path | str,
    options: Options,
    on_record: Callable[[int], None] = lambda image_bytes: None,
) -> ShardReport:
    """Write `records` as a corpus to the folder or URL `out`, or as one corpus per split inside it.

    The bytes written are a function of the records, their order and the options alone. Beside the corpus are
    `quarantine.jsonl` (key, reason, where and detail of each record dropped), `yield.json` and `yield.txt`, and
    `source.json`. If `options.origin` describes `records`, `options.workers` tasks make their parts, each of which
    opens the source for itself, and a run that was killed is resumed; otherwise all is one part.

    Raises:
        UserError: `out` cannot be written, more than the tolerated share was dropped, or a split is left empty.
    """
    parts = parts_of(records, options)
    with open_store(out, options.origin is not None) as store:
        try:
            made = {part.number: part for part in store.begin(_plan(parts, options))}
        except Finished as finished:
            return ShardReport.from_dict(json.loads(finished.read(YIELD)))
        job = PartJob(store, options)
        with engine(options.engine, options.workers, options.ray_address) as run:
            if options.origin is None:
                made[0] = make_part(job, 0, records, run, on_record=on_record)
            todo = [part for part in parts if part.number not in made]
            made |= _made(job, todo, run, on_record)
            done = [made[part.number] for part in parts]
            losers = _losers(job, done, run)
            return _finish(job, out, _pruned(job, parts, done, losers, run), losers)


def shard_share(records: Source, out: Path | str, options: Options, share: tuple[int, int]) -> tuple[int, int]:
    """Make only the i-th of n shares of the parts, beside other processes that make the others.

    Once all have ended, `shard` joins the parts and makes those that are missing.

    Returns:
        How many parts were made, and how many of the share were there already.

    Raises:
        UserError: `out` cannot be written, or something else is being made there.
    """
    parts = parts_of(records, options)
    with open_store(out, True, shared=True) as store:
        made = {part.number for part in store.begin(_plan(parts, options))}
        mine = chosen(parts, share)
        todo = [part for part in mine if part.number not in made]
        with engine(options.engine, options.workers, options.ray_address) as run:
            _made(PartJob(store, options), todo, run)
    return len(todo), len(mine) - len(todo)


def parts_of(records: Iterable[Item], options: Options) -> list[Part]:
    """The parts of a source, or a single one if it cannot be cut."""
    if options.origin is None or not isinstance(records, Cuttable):
        return cut((), options.shard_bytes)
    return cut(records.units(), options.shard_bytes)


def _plan(parts: list[Part], options: Options) -> dict[str, Any] | None:
    """All that decides the bytes, as it comes back from JSON."""
    if options.origin is None:
        return None
    plan = {
        "origin": deciding(options.origin),
        "parts": [[part.start, part.size] for part in parts],
        "split": options.split and [list(options.split.shares.items()), options.split.field],
        "shard_bytes": options.shard_bytes,
        "filters": asdict(options.filters),
        "dedup": options.dedup,
        "exclude": [manifest_at(place).fingerprint for place in options.exclude],
        "versions": versions(),
    }
    return json.loads(json.dumps(plan))  # type: ignore[no-any-return]


def _made(
    job: PartJob, parts: list[Part], run: Map, on_record: Callable[[int], None] = lambda image_bytes: None
) -> dict[int, PartManifest]:
    """Make these parts, each in one task; for a single part, the workers check its records."""
    if len(parts) == 1 or (job.options.workers == 1 and job.options.engine == "local"):
        return {part.number: run_part(job, part, run, on_record) for part in parts}
    made = {}
    for part, manifest in run(partial(run_part, job), parts, lambda part: CHUNK_BYTES):  # each a chunk of its own
        made[part.number] = manifest
        for _ in range(manifest.report["read"]):
            on_record(part.size // manifest.report["read"])
    return made


def _losers(job: PartJob, done: list[PartManifest], run: Map) -> Losers:
    options, store = job.options, job.store
    excluded = excluded_pictures(options.exclude, store.work, run)
    pairs = find_pairs(store, done, [excluded], options)
    columns = ["id", "exact"] if options.dedup == "exact" else ["id"]
    suspects = find_suspects(store, done, columns, pairs, options.memory_bytes)
    return find_losers(store, done, DedupIndex(options.dedup, store.work), excluded, pairs, suspects)


def _pruned(job: PartJob, parts: list[Part], done: list[PartManifest], losers: Losers, run: Map) -> list[PartManifest]:
    """The parts without the rows that must go."""
    away = {made.number: [loser.number for loser in losers.get(made.number, ())] for made in done}
    wrong = [made for made in done if made.pruned != digest(away[made.number])]
    again = [parts[made.number] for made in wrong if made.pruned]  # pruned of other rows by an earlier run
    whole = {made.number: made for made in wrong} | _made(job, again, run)
    todo = [(parts[made.number], made, away[made.number]) for made in whole.values() if away[made.number]]
    kept = dict(whole)
    if len(todo) == 1:
        kept |= {made.number: prune_part(job, made, numbers) for _, made, numbers in todo}
    else:
        kept |= {made.number: made for _, made in run(partial(prune_again, job), todo, lambda item: CHUNK_BYTES)}
    return [kept.get(made.number, made) for made in done]


def _finish(job: PartJob, out: Path | str, parts: list[PartManifest], losers: Losers) -> ShardReport:
    """Write the files that cover all parts, and let the corpus appear."""
    store, options = job.store, job.options
    report, found = total_report(parts, losers), manifests(parts, options.names)
    with (store.work / QUARANTINE).open("w", encoding="utf-8") as file:
        write_dropped(file, store, parts, losers)
    sync(store.work / QUARANTINE)
    _check_tolerance(store, report, out, options.tolerate)
    for name in options.names:
        if name not in found:
            store.discard()
            raise UserError(_nothing_left(report, out, name, options.split))
    report.splits = {name: manifest.rows for name, manifest in found.items() if name}
    texts = {YIELD: report.to_json(), YIELD_TEXT: report.text()}
    if options.origin is not None:
        texts[SOURCE] = json.dumps(dict(options.origin), indent=1) + "\n"
    named = {within(name, MANIFEST): manifest.to_json() for name, manifest in found.items()}
    for name, text in (texts | named).items():
        write_durably(store.work / name, text)
    store.finish([QUARANTINE, *texts, *named])
    return report


def _check_tolerance(store: Store, report: ShardReport, out: Path | str, tolerate: float) -> None:
    dropped = {
        reason: count
        for reason, count in report.dropped.items()
        if not report.kept or (reason not in WANTED and not reason.startswith(USUAL))
    }
    total = sum(dropped.values())
    if not dropped or (report.kept and total <= tolerate * report.read):
        return
    reason, count = Counter(dropped).most_common(1)[0]
    with (store.work / QUARANTINE).open(encoding="utf-8") as file:
        first = next(entry for entry in map(json.loads, file) if entry["reason"] == reason)
    beside = store.reject(QUARANTINE)
    store.discard()
    example = ", ".join(filter(None, (first["where"], first["detail"][:100])))
    remedy = f", or raise --tolerate above {tolerate:g}" if report.kept else ""
    raise UserError(
        f"{out} was not made, because {total} of {report.read} records were dropped, "
        f"{count} of them for {reason!r} ({example}): fix those listed in {beside} beside it{remedy}."
    )


def _nothing_left(report: ShardReport, out: Path | str, name: str, split: Split | None) -> str:
    if not report.read or split is None:
        return f"{out} was not made, because the source holds no records: check its path."
    return f"{out} was not made, because none of {report.kept} records {EMPTY_SPLIT} {name!r}: {split.remedy}."
