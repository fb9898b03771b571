"""What is known of all parts together: which of their rows must go, because others hold the same, and the totals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import TextIO

import numpy as np

from mvlm.data.shards.schema import CAPTION, Manifest, Shard, Shards

from .dedup import EXCLUDED, DedupIndex, Excluded
from .equal import EqualJoin
from .look import LOOK
from .marks import RowMark, mark_batches, marks
from .part import PartManifest
from .record import Dropped
from .report import ShardReport
from .store.store import Store, part_file
from .task import MARKS, dropped_of


@dataclass(frozen=True)
class Loser:
    """A row that must go: its record's number, how many captions go with it, and what the quarantine says."""

    number: int
    captions: int
    dropped: Dropped


Losers = dict[int, list[Loser]]
"""By part, in the order of its records."""

SUMS = ("rows", "captions", "image_bytes")

Suspects = dict[int, np.ndarray]
"""By part, the numbers of records, ascending."""

NOBODY = np.empty(0, np.uint64)

PLACE_BITS = 32
"""Of a row's place, those that hold the number of its record; the others hold its part."""


def find_losers(
    store: Store,
    parts: Iterable[PartManifest],
    index: DedupIndex,
    excluded: Excluded,
    suspects: Suspects | None = None,
) -> Losers:
    """Of rows with equal ids, or equal images where that was asked for, the first stays, in the order of the parts.

    Args:
        suspects: by part, the only rows that can be like others; None = any may.
    """
    losers: Losers = {}
    for made in parts:
        only = None if suspects is None else suspects.get(made.number, NOBODY)
        for mark in marks(store.local(part_file(made.number, MARKS)), only):
            reason, detail = _verdict(mark, index, excluded)
            if reason:
                dropped = Dropped(mark.key, reason, mark.where, detail, mark.source)
                losers.setdefault(made.number, []).append(Loser(mark.number, mark.captions, dropped))
    return losers


def find_suspects(store: Store, parts: Sequence[PartManifest], columns: Sequence[str], memory: int) -> Suspects:
    """The rows that share a value with another in one of the columns, all of which hold 16 bytes.

    Args:
        memory: bytes that sorting may take.
    """
    rows = sum(made.rows for made in parts)
    joins = {name: EqualJoin(store.work, rows, memory) for name in columns}
    for made in parts:
        for batch in mark_batches(store.local(part_file(made.number, MARKS)), ["number", *columns]):
            places = batch["number"].to_numpy().astype(np.uint64) | np.uint64(made.number << PLACE_BITS)
            for name, join in joins.items():
                join.add(np.frombuffer(batch[name].buffers()[1], np.uint64).reshape(-1, 2)[: len(batch)], places)
    found: Suspects = {}
    for places in (join.shared() for join in joins.values()):
        parts_of, firsts = np.unique(places >> np.uint64(PLACE_BITS), return_index=True)
        numbers = np.split(places & np.uint64((1 << PLACE_BITS) - 1), firsts[1:])
        for part, of_it in zip(parts_of.tolist(), numbers, strict=bool(len(places))):
            found[part] = np.union1d(found.get(part, of_it), of_it)
    return found


def _verdict(mark: RowMark, index: DedupIndex, excluded: Excluded) -> tuple[str, str]:
    looks = [mark.look[place : place + LOOK.size] for place in range(0, len(mark.look), LOOK.size)]
    if twin := excluded.twin(looks):
        return EXCLUDED, f"looks like {twin}"
    return index.refuses(mark.id, mark.exact, looks[0] if looks else b"", mark.name)


def total_report(parts: Iterable[PartManifest], losers: Losers) -> ShardReport:
    report = ShardReport()
    for made in parts:
        report.add(ShardReport.from_dict(made.report))
        for loser in losers.get(made.number, ()):
            report.take_back(loser.dropped.source, loser.captions, loser.dropped.reason)
    return report


def write_dropped(file: TextIO, store: Store, parts: Iterable[PartManifest], losers: Losers) -> int:
    """Write the quarantine: what each part has dropped, with the rows that went later, in order; return its lines."""
    lines = 0
    for made in parts:
        later = ((loser.number, loser.dropped) for loser in losers.get(made.number, ()))
        for _, dropped in merge(dropped_of(store, made), later, key=lambda one: one[0]):
            file.write(json.dumps(vars(dropped)) + "\n")
            lines += 1
    return lines


def manifests(parts: Sequence[PartManifest], names: Sequence[str]) -> Mapping[str, Manifest]:
    """The manifest of each split of which there are rows."""
    task = next((made.task for made in parts if made.task), CAPTION)
    return {name: manifest for name in names if (manifest := _manifest(parts, name, task)).rows}


def _manifest(parts: Sequence[PartManifest], name: str, task: str) -> Manifest:
    of_it = [made.splits[name] for made in parts if name in made.splits]
    shards: Iterator[Shard] = (shard for made in of_it for shard in made.shards)
    rows, captions, image_bytes = (sum(getattr(made, what) for made in of_it) for what in SUMS)
    return Manifest(rows, captions, image_bytes, Shards(shards), task)
