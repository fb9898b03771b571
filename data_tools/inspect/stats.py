"""What a corpus holds: counts and distributions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvlm.data.loading.neighbours import default_neighbours
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.in_place import image_bytes
from mvlm.data.shards.location import open_location
from mvlm.data.shards.schema import read_manifest
from mvlm.data.shards.tables import columns_of
from mvlm.data.shards.takedown import read_takedown
from mvlm.errors import UserError
from mvlm.runtime.wording import counted

from ..corpora import batches, kept_rows

QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
MEASURES = {
    "width": "width, pixels",
    "height": "height, pixels",
    "bytes": "image, bytes",
    "captions": "captions per image",
    "words": "words per text",
    "characters": "characters per text",
}
TEXTS = {"caption": "captions", "vqa": "question", "nlvr2": "sentence", "entailment": "sentence", "foils": "caption"}
"""The column whose lengths are measured, by task."""

COUNTED = ("source", "question_type", "label", "swapped", "answers")
"""Columns whose values are counted, if the task has them; of `answers`, only the first of each row."""

BINS = 40
"""Most bins of a histogram."""

UNCHECKED = "texts of {} are not checked as they are read: give these a row index (data_tools row-index)"

SHOWN = 10
"""Values shown of a counted column."""


def corpus_stats(folder: Path, where: str) -> dict[str, Any]:
    """Rows, captions, bytes, the values of each of `COUNTED`, and mean, quantiles and histogram of each of `MEASURES`.

    Args:
        where: a condition on the rows' metadata, for the statistics of those rows alone; "" = all.

    Raises:
        UserError: the corpus is missing or damaged, the condition cannot be read, or no row meets it.
    """
    manifest, order, kept = read_manifest(folder), default_neighbours(folder), kept_rows(folder, where)
    if kept and not kept.count:
        raise UserError(
            f"No row of {folder} meets {where!r}: relax the condition."
            if where
            else f"All rows of {folder} were taken down: there is nothing to count."
        )
    values: dict[str, Counter[int]] = {}
    counts: dict[str, Counter[str]] = {}
    for batch in batches(folder, manifest, kept):
        for name, column in _measure(batch, TEXTS[manifest.task]).items():
            values.setdefault(name, Counter()).update(_value_counts(column))
        for name in COUNTED:
            if name in batch.schema.names:
                counts.setdefault(name, Counter()).update(_value_counts(_first(batch[name])))
    return {
        "task": manifest.task,
        "rows": manifest.rows,
        "captions": manifest.captions,
        "image_bytes": manifest.image_bytes,
        "where": where,
        "kept": kept.count if kept else manifest.rows,
        "taken_down": len(read_takedown(folder, manifest)),
        "columns": _columns(folder),
        "shards": len(manifest.shards),
        "shards_without_index": manifest.shards.unindexed,
        "fingerprint": manifest.fingerprint,
        "neighbours": order.to_json(),
        "counts": {name: _sorted(counter) for name, counter in counts.items()},
        "distributions": {name: _distribution(counter) for name, counter in values.items()},
    }


def _columns(folder: Path) -> dict[str, str]:
    """The columns that conditions may name, with their types in the first shard."""
    location = open_location(folder, Cache())
    table, _ = columns_of(location, 0, None) if len(location.manifest.shards) else (pa.table({}), [])
    return {name: str(table.schema.field(name).type) for name in table.schema.names}


def _measure(batch: pa.RecordBatch, text_column: str) -> dict[str, pa.Array]:
    texts = batch[text_column]
    numbers: dict[str, pa.Array] = {
        "width": batch["width"],
        "height": batch["height"],
        "bytes": pa.array([image_bytes(image.as_buffer()) for image in batch["image"]], pa.int64()),
    }
    if pa.types.is_list(texts.type):
        numbers["captions"] = pc.list_value_length(texts)
        texts = texts.flatten()
    numbers["words"] = pc.list_value_length(pc.utf8_split_whitespace(texts))
    numbers["characters"] = pc.utf8_length(texts)
    return numbers


def _first(column: pa.Array) -> pa.Array:
    return pc.list_slice(column, 0, 1).flatten() if pa.types.is_list(column.type) else column


def _value_counts(column: pa.Array) -> dict[Any, int]:
    found = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def _sorted(counter: Counter[Any]) -> dict[str, int]:
    """The most frequent first; true and false as JSON has them."""
    names = {True: "true", False: "false"}
    return {names[value] if isinstance(value, bool) else value: rows for value, rows in counter.most_common()}


def _distribution(counter: Counter[int]) -> dict[str, Any]:
    """Mean, the `QUANTILES` (values that occur), and the histogram of values that are counted in `counter`."""
    values = np.array(sorted(counter))
    times = np.array([counter[value] for value in values.tolist()])
    ranks = np.rint(np.array(list(QUANTILES.values())) * (times.sum() - 1))
    quantiles = values[np.searchsorted(np.cumsum(times), ranks, side="right")].tolist()
    mean = float((values * times).sum() / times.sum())
    return {"mean": mean} | dict(zip(QUANTILES, quantiles, strict=True)) | {"histogram": _binned(values, times)}


def _binned(values: np.ndarray, times: np.ndarray) -> dict[str, list[float]]:
    """At most BINS bins of equal width: their edges, one more than there are bins, and how many values are in each."""
    span = int(values[-1] - values[0]) + 1
    bins = min(BINS, span)
    width = -(-span // bins)
    edges = values[0] + width * np.arange(-(-span // width) + 1)
    counts, _ = np.histogram(values, edges, weights=times)
    return {"edges": edges.tolist(), "counts": counts.astype(int).tolist()}


def table(stats: dict[str, Any]) -> str:
    """The statistics as text for a person."""
    megabytes, captions = stats["image_bytes"] / 1e6, stats["captions"]
    rows = counted(stats["rows"], "image" if stats["task"] == "caption" else f"{stats['task']} row")
    said = f", {counted(captions, 'caption')}" if captions else ""
    head = f"{rows}{said}, {megabytes:,.1f} MB in {counted(stats['shards'], 'shard')}"
    if stats["where"] or stats["taken_down"]:
        head += f"\n{stats['kept']:,} of them ({stats['kept'] / stats['rows']:.1%}) are shown below"
        head += f": {stats['where']}" if stats["where"] else ""
        head += f"; {stats['taken_down']:,} were taken down" if stats["taken_down"] else ""
    head += f"\ncolumns: {', '.join(f'{name} ({kind})' for name, kind in stats['columns'].items())}"
    names = ["mean", *QUANTILES]
    if stats["shards_without_index"]:
        head += f"\n{UNCHECKED.format(counted(stats['shards_without_index'], 'shard'))}"
    head += f"\n{stats['neighbours']['sentence']}"
    lines = [head, "", f"{'':<20}" + "".join(f"{name:>11}" for name in names)]
    for name, values in stats["distributions"].items():
        numbers = "".join(f"{values[column]:>11,.{column == 'mean':d}f}" for column in names)
        lines.append(f"{MEASURES[name]:<20}{numbers}")
    for name, counts in stats["counts"].items():
        lines += ["", name.replace("_", " ")]
        shown = list(counts.items())[:SHOWN]
        lines += [f"{rows:>11,}  {value or '(none given)'}" for value, rows in shown]
        if (hidden := len(counts) - len(shown)) > 0:
            lines.append(f"{'':>11}  and {hidden:,} more")
    return "\n".join(lines)
