"""All parts together: which of their rows must go, because others hold the same, and the totals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import TextIO

import numpy as np
import pyarrow.compute as pc

from mvlm.data.shards.files import Shard, Shards
from mvlm.data.shards.schema import CAPTION, Manifest

from .dedup import EXCLUDED, DedupIndex
from .equal import EqualJoin
from .marks import RowMark, mark_batches, marks
from .near import NearJoin, PicturePairs
from .part import PartManifest
from .perceptual_hash import CUTS, SEEN
from .perceptual_hash_file import PerceptualHashFile
from .pipeline import Options
from .record import Dropped
from .report import ShardReport
from .store.store import Store, part_file
from .task import MARKS, dropped_of


@dataclass(frozen=True)
class Loser:
    """A row that must go: its record's number, how many captions go with it, why others of its captions were dropped
    before, and what the quarantine says.
    """

    number: int
    captions: int
    caption_drops: list[str]
    dropped: Dropped


Losers = dict[int, list[Loser]]
"""By part, in the order of its records."""

SUMS = ("rows", "captions", "image_bytes")

Suspects = dict[int, np.ndarray]
"""By part, the numbers of records, ascending."""

NOBODY = np.empty(0, np.uint64)

PLACE_BITS = 32
"""The low bits of a row's place, which hold the number of its record; the others hold its part, counted from 1."""

IMAGE_BITS = 1
"""The low bits of an image's place, which tell which of its row's images it is; the others hold the row's."""

ROWS = 1 << PLACE_BITS + IMAGE_BITS
"""The lowest place of a row's image; those below belong to known images."""

COLOUR_STEP = 32
"""Divides the sum of the levels in a picture's corners, to fit the sort keys."""

KNOWN_AT_A_TIME = 1024


def find_losers(
    store: Store,
    parts: Iterable[PartManifest],
    index: DedupIndex,
    excluded: PerceptualHashFile,
    pairs: PicturePairs | None,
    suspects: Suspects | None,
) -> Losers:
    """The rows that must go: of rows with equal ids, or equal images if asked for, the first stays, in the order of
    the parts.

    Args:
        pairs: of images that may show the same; None = none were looked for.
        suspects: by part, the only rows that can be like others; None = any may.
    """
    losers: Losers = {}
    for made in parts:
        only = None if suspects is None else suspects.get(made.number, NOBODY)
        for mark in marks(store.local(part_file(made.number, MARKS)), only):
            reason, detail = _verdict(mark, _place(made.number, mark.number), index, excluded, pairs)
            if reason:
                dropped = Dropped(mark.key, reason, mark.where, detail, mark.source)
                losers.setdefault(made.number, []).append(
                    Loser(mark.number, mark.captions, mark.caption_drops, dropped)
                )
    return losers


def _verdict(
    mark: RowMark, place: int, index: DedupIndex, excluded: PerceptualHashFile, pairs: PicturePairs | None
) -> tuple[str, str]:
    first = place << IMAGE_BITS
    earlier = [pairs.earlier(first + number).tolist() if pairs else [] for number in range(len(mark.looks) or 1)]
    for look, others in zip(mark.looks, earlier, strict=False):
        if twin := excluded.twin(look, [one for one in others if one < len(excluded)]):
            return EXCLUDED, f"looks like {twin}"
    return index.refuses(mark, first, [one for one in earlier[0] if one >= len(excluded)])


def _place(part: int, number: int) -> int:
    return part + 1 << PLACE_BITS | number


def find_pairs(
    store: Store, parts: Sequence[PartManifest], known: Sequence[PerceptualHashFile], options: Options
) -> PicturePairs | None:
    """The images that may show the same, by their places; None if none are looked for.

    Args:
        known: images to compare the rows' with; their places are their numbers, counted through all files.
    """
    if not options.checked.look:
        return None
    join, count = NearJoin(store.work, options.memory_bytes, len(CUTS)), 0
    for pictures in known:
        for start in range(0, len(pictures), KNOWN_AT_A_TIME):
            seen = pictures.seen(start, min(start + KNOWN_AT_A_TIME, len(pictures)))
            _add(join, np.arange(count, count + len(seen), dtype=np.uint64), seen)
            count += len(seen)
    for made in parts:
        for batch in mark_batches(store.local(part_file(made.number, MARKS)), ["number", "seen"]):
            images = pc.binary_length(batch["seen"]).to_numpy() // SEEN.itemsize
            rows = np.repeat(batch["number"].to_numpy().astype(np.uint64) + np.uint64(_place(made.number, 0)), images)
            image = np.concatenate([NOBODY, *(np.arange(count, dtype=np.uint64) for count in images)])
            seen = np.frombuffer(b"".join(batch["seen"].to_pylist()), SEEN)
            _add(join, (rows << np.uint64(IMAGE_BITS)) + image, seen)
    return join.pairs(count, among=options.dedup == "perceptual")


def _add(join: NearJoin, places: np.ndarray, seen: np.ndarray) -> None:
    colours = seen["corners"].sum(1, dtype=np.int64) // COLOUR_STEP
    join.add(places, seen["hashes"], colours)


def find_suspects(
    store: Store, parts: Sequence[PartManifest], columns: Sequence[str], pairs: PicturePairs | None, memory: int
) -> Suspects:
    """The rows that share a value with another in one of the columns, all of which hold 16 bytes, or are in a pair.

    Args:
        memory: bytes that sorting may take.
    """
    rows = sum(made.rows for made in parts)
    joins = {name: EqualJoin(store.work, rows, memory) for name in columns}
    for made in parts:
        for batch in mark_batches(store.local(part_file(made.number, MARKS)), ["number", *columns]):
            places = batch["number"].to_numpy().astype(np.uint64) + np.uint64(_place(made.number, 0))
            for name, join in joins.items():
                join.add(np.frombuffer(batch[name].buffers()[1], np.uint64).reshape(-1, 2)[: len(batch)], places)
    near = pairs.places() if pairs else np.empty(0, np.uint64)
    return _by_part([join.shared() for join in joins.values()] + [near[near >= ROWS] >> np.uint64(IMAGE_BITS)])


def _by_part(found: Iterable[np.ndarray]) -> Suspects:
    places = np.unique(np.concatenate(list(found)))
    if not len(places):
        return {}
    parts, firsts = np.unique(places >> np.uint64(PLACE_BITS), return_index=True)
    numbers = np.split(places & np.uint64((1 << PLACE_BITS) - 1), firsts[1:])
    return {part - 1: of_it for part, of_it in zip(parts.tolist(), numbers, strict=True)}


def total_report(parts: Iterable[PartManifest], losers: Losers) -> ShardReport:
    report = ShardReport()
    for made in parts:
        report.add(ShardReport.from_dict(made.report))
        for loser in losers.get(made.number, ()):
            report.take_back(loser.dropped.source, loser.captions, loser.caption_drops, loser.dropped.reason)
    return report


def write_dropped(file: TextIO, store: Store, parts: Iterable[PartManifest], losers: Losers) -> int:
    """Write the quarantine: what each part dropped, and the rows that went later, in order; return how many lines."""
    lines = 0
    for made in parts:
        later = ((loser.number, loser.dropped) for loser in losers.get(made.number, ()))
        for _, dropped in merge(dropped_of(store, made), later, key=lambda one: one[0]):
            file.write(json.dumps(vars(dropped)) + "\n")
            lines += 1
    return lines


def manifests(parts: Sequence[PartManifest], names: Sequence[str]) -> Mapping[str, Manifest]:
    """The manifest of each split that has rows."""
    task = next((made.task for made in parts if made.task), CAPTION)
    return {name: manifest for name in names if (manifest := _manifest(parts, name, task)).rows}


def _manifest(parts: Sequence[PartManifest], name: str, task: str) -> Manifest:
    of_it = [made.splits[name] for made in parts if name in made.splits]
    shards: Iterator[Shard] = (shard for made in of_it for shard in made.shards)
    rows, captions, image_bytes = (sum(getattr(made, what) for made in of_it) for what in SUMS)
    return Manifest(rows, captions, image_bytes, Shards(shards), task)
