"""How far other designers agree: python examples/icons/ceiling.py shards/icons/pairs shards/icons/foils/opposites

Of each row of foils, the nearest drawing is looked for among those that other designers call by its caption or by its
foil. The share of rows whose nearest drawing bears the caption estimates what a model can reach that knows names by the
pictures of others. Rows that no other designer has drawn both ways are left out.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 16  # pixels: half the width of a stroke is no difference


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all corpora in a folder, with the designer of each."""
    for manifest in sorted(folder.rglob("manifest.json")):
        for shard in json.loads(manifest.read_text())["shards"]:
            path = manifest.parent / shard["file"]
            designers = pq.read_table(path.with_suffix(".meta.parquet"), columns=["designer"])["designer"]
            with pa.memory_map(str(path)) as mapped:
                reader, at = pa.ipc.open_file(mapped), 0
                for number in range(reader.num_record_batches):
                    for row in reader.get_batch(number).to_pylist():
                        yield row | {"designer": designers[at].as_py()}
                        at += 1


def vector(image: bytes) -> np.ndarray:
    """float32 [SIDE * SIDE]"""
    with Image.open(io.BytesIO(image)) as opened:
        grey = opened.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(grey, np.float32).ravel()


def ceiling(pairs: Path, foils: Path) -> dict[str, tuple[float, int]]:
    """The share of rows whose nearest drawing bears their caption, and the number of rows, by the words exchanged."""
    wanted = {text for row in rows(foils) for text in (row["caption"], row["foil"])}
    drawn: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for row in rows(pairs):
        for caption in wanted.intersection(row["captions"]):
            drawn[caption].append((row["designer"], vector(row["image"]).astype(np.uint8)))
    right, count = Counter[str](), Counter[str]()
    for row in rows(foils):
        here = vector(row["image"])
        near = [
            min((((here - other) ** 2).mean() for who, other in drawn[text] if who != row["designer"]), default=None)
            for text in (row["caption"], row["foil"])
        ]
        if near[0] is None or near[1] is None:
            continue
        for kind in (row["swapped"], "all"):
            count[kind] += 1
            right[kind] += 1.0 if near[0] < near[1] else 0.5 if near[0] == near[1] else 0.0  # type: ignore[assignment]
    return {kind: (right[kind] / number, number) for kind, number in count.most_common()}


if __name__ == "__main__":
    for kind, (share, number) in ceiling(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{kind:28} {100 * share:5.1f} %  of {number:,} rows")
