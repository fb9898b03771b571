"""What a corpus holds: counts and distributions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_tools.corpora import batches
from mvlm.data.schema import read_manifest

QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
MEASURES = {
    "width": "width, pixels",
    "height": "height, pixels",
    "bytes": "image, bytes",
    "captions": "captions an image",
    "words": "words a caption",
}
SOURCES_SHOWN = 10


def corpus_stats(folder: Path) -> dict[str, Any]:
    """Rows, captions, bytes, rows by source, and mean and quantiles of each of `MEASURES`.

    Raises:
        UserError: the corpus is missing or damaged.
    """
    manifest = read_manifest(folder)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
    sources: Counter[str] = Counter()
    for batch in batches(folder, manifest):
        for name, values in _measure(batch).items():
            parts[name].append(values)
        counts = pc.value_counts(batch["source"])
        sources.update(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))
    return {
        "rows": manifest.rows,
        "captions": manifest.captions,
        "image_bytes": manifest.image_bytes,
        "shards": len(manifest.shards),
        "fingerprint": manifest.fingerprint,
        "sources": dict(sources.most_common()),
        "distributions": {name: _distribution(np.concatenate(values)) for name, values in parts.items()},
    }


def _measure(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
    words = pc.list_value_length(pc.utf8_split_whitespace(batch["captions"].flatten()))
    columns = {
        "width": batch["width"],
        "height": batch["height"],
        "bytes": pc.binary_length(batch["image"]),
        "captions": pc.list_value_length(batch["captions"]),
        "words": words,
    }
    return {name: column.to_numpy(zero_copy_only=False) for name, column in columns.items()}


def _distribution(values: np.ndarray) -> dict[str, float]:
    quantiles = np.quantile(values, list(QUANTILES.values()), method="nearest").tolist()
    return {"mean": float(values.mean())} | dict(zip(QUANTILES, quantiles, strict=True))


def table(stats: dict[str, Any]) -> str:
    """The statistics as text for a person."""
    megabytes = stats["image_bytes"] / 1e6
    head = f"{stats['rows']:,} images, {stats['captions']:,} captions, {megabytes:,.1f} MB in {stats['shards']} shards"
    names = ["mean", *QUANTILES]
    lines = [head, "", f"{'':<20}" + "".join(f"{name:>11}" for name in names)]
    for name, title in MEASURES.items():
        values = stats["distributions"][name]
        lines.append(f"{title:<20}" + "".join(f"{values[column]:>11,.{column == 'mean':d}f}" for column in names))
    lines.append("")
    shown = list(stats["sources"].items())[:SOURCES_SHOWN]
    lines += [f"{rows:>11,}  {source or '(no source given)'}" for source, rows in shown]
    if (hidden := len(stats["sources"]) - len(shown)) > 0:
        lines.append(f"{'':>11}  and {hidden:,} more sources")
    return "\n".join(lines)
