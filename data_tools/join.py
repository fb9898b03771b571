"""What is known of all parts together: which of their rows must go, because others hold the same, and the totals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import TextIO

from mvlm.data.shards.schema import CAPTION, Manifest, Shard, Shards

from .dedup import EXCLUDED, DedupIndex, Excluded
from .look import LOOK
from .marks import RowMark, marks
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


def find_losers(store: Store, parts: Iterable[PartManifest], index: DedupIndex, excluded: Excluded) -> Losers:
    """Of rows with equal ids, or equal images where that was asked for, the first stays, in the order of the parts."""
    losers: Losers = {}
    for made in parts:
        for mark in marks(store.local(part_file(made.number, MARKS))):
            reason, detail = _verdict(mark, index, excluded)
            if reason:
                dropped = Dropped(mark.key, reason, mark.where, detail, mark.source)
                losers.setdefault(made.number, []).append(Loser(mark.number, mark.captions, dropped))
    return losers


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
