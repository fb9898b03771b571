"""From records to a corpus: check each, allot it to a split, write it; count and list what was dropped."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from data_tools.check import Checked, check_record
from data_tools.engines.local import ordered_map
from data_tools.record import Dropped, Record, Row
from data_tools.split import MISSING, Split
from data_tools.writer import CorpusWriter, staged, sync_folder, write_text
from mvlm.errors import UserError

QUARANTINE = "quarantine.jsonl"
YIELD = "yield.json"


@dataclass
class Yield:
    """What became of the records and captions that were read."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    captions: int = 0
    dropped_captions: Counter[str] = field(default_factory=Counter)
    splits: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        counters = {"dropped": self.dropped, "dropped_captions": self.dropped_captions}
        content = vars(self) | {name: dict(sorted(counter.items())) for name, counter in counters.items()}
        return json.dumps(content, indent=1) + "\n"

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [f"read {self.read:,} records, kept {self.kept:,} with {self.captions:,} captions"]
        for title, counter in (("records", self.dropped), ("captions", self.dropped_captions)):
            if counter:
                lines.append(f"dropped {counter.total():,} {title}:")
                lines += [f"  {count:>9,}  {reason}" for reason, count in counter.most_common()]
        lines += [f"{name}: {rows:,} records" for name, rows in self.splits.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Options:
    """How a corpus is written."""

    split: Split | None = None
    shard_bytes: int = 256_000_000
    workers: int = 1
    tolerate: float = 0.5  # share of the records that may be dropped


def shard(
    records: Iterable[Record | Dropped],
    out: Path,
    options: Options,
    on_record: Callable[[int], None] = lambda image_bytes: None,
) -> Yield:
    """Write `records` as a corpus to the folder `out`, or as one corpus a split inside it.

    The bytes written are a function of the records and their order alone. Beside the corpus stand
    `quarantine.jsonl` (key, reason, where and detail of each record dropped) and `yield.json`.

    Raises:
        UserError: `out` cannot be written, more than the tolerated share was dropped, or a split is left empty.
    """
    with staged(out) as folder:
        names = list(options.split.shares) if options.split else [""]
        writers = {name: CorpusWriter(folder / name, options.shard_bytes) for name in names}
        with (folder / QUARANTINE).open("w", encoding="utf-8") as quarantine:
            counts = _write_all(records, writers, options, quarantine, on_record)
            quarantine.flush()
            os.fsync(quarantine.fileno())
        if counts.read and counts.kept < counts.read:
            _check_tolerance(counts, folder, out, options.tolerate)
        for name, writer in writers.items():
            if not writer.rows:
                raise UserError(_nothing_left(counts, out, name))
            writer.close()
        counts.splits = {name: writer.rows for name, writer in writers.items() if name}
        write_text(folder / YIELD, counts.to_json())
    return counts


def _write_all(
    records: Iterable[Record | Dropped],
    writers: dict[str, CorpusWriter],
    options: Options,
    quarantine: TextIO,
    on_record: Callable[[int], None],
) -> Yield:
    counts, seen = Yield(), set[str]()
    for item, result in ordered_map(check_record, records, options.workers, _size):
        counts.read += 1
        kept = _admit(item, result, options.split, seen)
        if isinstance(kept, Dropped):
            counts.dropped[kept.reason] += 1
            quarantine.write(json.dumps(vars(kept)) + "\n")
        else:
            row, name = kept
            writers[name].add(row)
            counts.kept += 1
            counts.captions += len(row.captions)
        if isinstance(result, Checked):
            counts.dropped_captions += result.caption_drops
        on_record(_size(item))
    return counts


def _size(item: Record | Dropped) -> int:
    return len(item.image) if isinstance(item, Record) else 0


def _admit(
    item: Record | Dropped, result: Checked | Dropped, split: Split | None, seen: set[str]
) -> tuple[Row, str] | Dropped:
    """The row to write and its split, or why there is none; of equal keys the first good record is kept."""
    if isinstance(item, Dropped) or isinstance(result, Dropped):
        return result if isinstance(result, Dropped) else Dropped(item.key, "unreadable", item.where)
    name = split.allot(item) if split else ""
    if name is None:
        return Dropped(item.key, MISSING, item.where, split.field if split else "")
    if item.key in seen:
        return Dropped(item.key, "duplicate id", item.where)
    seen.add(item.key)
    row = Row(item.key, item.image, result.captions, item.source, result.width, result.height, result.crc32)
    return row, name


def _check_tolerance(counts: Yield, folder: Path, out: Path, tolerate: float) -> None:
    dropped = counts.read - counts.kept
    if counts.kept and dropped <= tolerate * counts.read:
        return
    beside = out.resolve().with_name(out.resolve().name + "." + QUARANTINE)
    os.replace(folder / QUARANTINE, beside)
    sync_folder(beside.parent)
    reason, count = counts.dropped.most_common(1)[0]
    remedy = f", or raise --tolerate above {tolerate:g}" if counts.kept else ""
    raise UserError(
        f"{out} was not made, because {dropped} of {counts.read} records were dropped, {count} of them for "
        f"{reason!r}: mend those listed in {beside.name} beside it{remedy}."
    )


def _nothing_left(counts: Yield, out: Path, name: str) -> str:
    if not counts.read:
        return f"{out} was not made, because the source holds no records: check its path."
    return f"{out} was not made, because no record fell into the split {name!r}: raise its share or add records."
