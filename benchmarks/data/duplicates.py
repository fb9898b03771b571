"""How the search for equal values grows with their number, and whether it finds what counting each one finds.

    python benchmarks/data/duplicates.py

Random values of 16 bytes, one in fifty a copy of an earlier one, in chunks as the marks of parts give them; CPU seconds
of one process and its highest memory, each size in a process of its own, within the memory of `--memory-gb`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data_tools.equal import EqualJoin  # noqa: E402

RESULT = Path(__file__).parent / "results" / "duplicates.json"
SIZES = (100_000, 1_000_000, 10_000_000)
COUNTED = 100_000
CHUNK = 5000
COPIES = 50


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    words.add_argument("--memory-gb", type=float, default=0.2)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    words.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one, int(arguments.memory_gb * 1e9))))
        return
    found = {}
    for size in arguments.sizes:
        one = [sys.executable, __file__, "--one", str(size), "--memory-gb", str(arguments.memory_gb)]
        found[size] = json.loads(subprocess.run(one, check=True, capture_output=True, text=True).stdout)
        print(size, found[size], flush=True)
    result = {"values": found, "memory GB": arguments.memory_gb, "numpy": np.__version__, "load": os.getloadavg()[0]}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def measured(size: int, memory: int) -> dict[str, object]:
    values, places = drawn(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        join = EqualJoin(Path(folder), size, memory)
        for first in range(0, size, CHUNK):
            join.add(values[first : first + CHUNK], places[first : first + CHUNK])
        shared = join.shared()
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {"CPU s": round(seconds, 2), "CPU us a value": round(1e6 * seconds / size, 3), "MB": round(grown / 1e3)}
    if size <= COUNTED:
        found["same as counting"] = shared.tolist() == counted(values, places)
    return found | {"shared": len(shared)}


def drawn(size: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 1 << 64, (size, 2), np.uint64)
    copies = draw.integers(1, size, size // COPIES)
    values[copies] = values[draw.integers(0, copies)]
    return values, np.arange(size, dtype=np.uint64)


def counted(values: np.ndarray, places: np.ndarray) -> list[int]:
    texts = [value.tobytes() for value in values]
    times = Counter(texts)
    return [place for place, text in zip(places.tolist(), texts, strict=True) if times[text] > 1]


if __name__ == "__main__":
    main()
