"""How long a large index takes to find the nearest: python -m benchmarks.search.query [--rows 250000] [--width 128]

An index of random features is written and opened as by `mvlm index` and `mvlm serve`; encoding queries, reranking by
ITM and pictures are not included. results/query.json has the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.kept import code_version
from mvlm.search.find import ImageIndex
from mvlm.search.folder import INDEX, PART, TABLE, TABLE_SCHEMA, Contents, hash_of, new_index, write_vectors

HERE = Path(__file__).parent
QUERIES, SHOWN = 40, 32
WEIGHTS = "random"


def make(out: Path, rows: int, width: int) -> None:
    """Write an index of random unit vectors."""
    generator = np.random.default_rng(0)
    with new_index(out) as folder:
        feature_NE = generator.normal(size=(rows, width)).astype(np.float32)
        feature_NE /= np.linalg.norm(feature_NE, axis=1, keepdims=True)
        starts = range(0, rows, PART)
        files = [write_vectors(folder, n, [feature_NE[at : at + PART]], width) for n, at in enumerate(starts)]
        numbers = list(range(rows))
        columns = [["shard"] * rows, numbers, list(map(str, numbers)), ["a caption"] * rows]
        with pa.OSFile(str(folder / TABLE), "wb") as file, pa.ipc.new_file(file, TABLE_SCHEMA) as table:
            table.write_table(pa.table(columns, schema=TABLE_SCHEMA))
        contents = Contents(WEIGHTS, 0, width, rows, (), hash_of(folder / TABLE), tuple(files))
        (folder / INDEX).write_text(contents.to_json(), encoding="utf-8")


def measure(folder: Path, width: int) -> dict[str, float]:
    """Medians over queries of wall-clock and CPU time."""
    loaded: Any = SimpleNamespace(fingerprint=WEIGHTS)
    index, generator = ImageIndex(folder, loaded), torch.Generator().manual_seed(1)
    wall, cpu = [], []
    for query_E in torch.nn.functional.normalize(torch.randn(QUERIES, width, generator=generator), dim=-1):
        began = time.perf_counter(), time.process_time()
        found = index.nearest(query_E, SHOWN)
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
        assert len(found) == SHOWN
    return {"wall_ms": 1000 * statistics.median(wall), "cpu_ms": 1000 * statistics.median(cpu)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--width", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "index"
        make(out, args.rows, args.width)
        found = {"rows": args.rows, "width": args.width, "shown": SHOWN, **measure(out, args.width)}
    found |= {"threads": torch.get_num_threads(), "commit": code_version()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results/query.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
