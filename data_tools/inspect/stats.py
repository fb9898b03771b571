"""What a corpus holds: counts and distributions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvlm.data.loading.neighbours import default_neighbours
from mvlm.data.shards.schema import read_manifest

from ..corpora import batches

QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
MEASURES = {
    "width": "width, pixels",
    "height": "height, pixels",
    "bytes": "image, bytes",
    "captions": "captions an image",
    "words": "words a text",
    "characters": "characters a text",
}
TEXTS = {"caption": "captions", "vqa": "question", "nlvr2": "sentence", "entailment": "sentence", "foils": "caption"}
"""By task: the column whose lengths are measured."""

COUNTED = ("source", "question_type", "label", "swapped", "answers")
"""Columns whose values are counted, where a task has them; of answers, the first of a row, if any."""

BINS = 40
"""Bins of a histogram at most."""

UNCHECKED = "texts of {:,} shards are not checked as they are read: give these a row index (data_tools row-index)"

SHOWN = 10
"""Values shown of a counted column."""


def corpus_stats(folder: Path) -> dict[str, Any]:
    """Rows, captions, bytes, the values of each of `COUNTED`, and mean, quantiles and histogram of each of `MEASURES`.

    Raises:
        UserError: the corpus is missing or damaged.
    """
    manifest, order = read_manifest(folder), default_neighbours(folder)
    values: dict[str, Counter[int]] = {}
    counts: dict[str, Counter[str]] = {}
    for batch in batches(folder, manifest):
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
        "shards": len(manifest.shards),
        "shards_without_index": manifest.shards.unindexed,
        "fingerprint": manifest.fingerprint,
        "neighbours": order.to_json(),
        "counts": {name: _sorted(counter) for name, counter in counts.items()},
        "distributions": {name: _distribution(counter) for name, counter in values.items()},
    }


def _measure(batch: pa.RecordBatch, text_column: str) -> dict[str, pa.Array]:
    texts = batch[text_column]
    numbers: dict[str, pa.Array] = {
        "width": batch["width"],
        "height": batch["height"],
        "bytes": pc.binary_length(batch["image"]),
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
    """Mean, the `QUANTILES` (values that occur), and the histogram: values in ascending order and how often each."""
    values = np.array(sorted(counter))
    times = np.array([counter[value] for value in values.tolist()])
    ranks = np.rint(np.array(list(QUANTILES.values())) * (times.sum() - 1))
    quantiles = values[np.searchsorted(np.cumsum(times), ranks, side="right")].tolist()
    mean = float((values * times).sum() / times.sum())
    return {"mean": mean} | dict(zip(QUANTILES, quantiles, strict=True)) | {"histogram": _binned(values, times)}


def _binned(values: np.ndarray, times: np.ndarray) -> dict[str, list[float]]:
    """At most BINS bins of equal width: their edges, one more than there are bins, and the numbers within."""
    span = int(values[-1] - values[0]) + 1
    bins = min(BINS, span)
    width = -(-span // bins)
    edges = values[0] + width * np.arange(-(-span // width) + 1)
    counts, _ = np.histogram(values, edges, weights=times)
    return {"edges": edges.tolist(), "counts": counts.astype(int).tolist()}


def table(stats: dict[str, Any]) -> str:
    """The statistics as text for a person."""
    megabytes, captions = stats["image_bytes"] / 1e6, stats["captions"]
    what = "images" if stats["task"] == "caption" else f"{stats['task']} rows"
    said = f", {captions:,} captions" if captions else ""
    head = f"{stats['rows']:,} {what}{said}, {megabytes:,.1f} MB in {stats['shards']} shards"
    names = ["mean", *QUANTILES]
    if stats["shards_without_index"]:
        head += f"\n{UNCHECKED.format(stats['shards_without_index'])}"
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
