"""How the cost of searching for equal values, or for hashes a few bits apart, grows with their number, and whether the
search finds what comparing all pairs finds.

    python benchmarks/data/duplicates.py equal
    python benchmarks/data/duplicates.py near --memory-gb 1

Random values, one in fifty a copy of an earlier one, in chunks as the marks of parts come: of 16 bytes, or, as a
picture has, of six 64-bit hashes, whose copies are up to 7 bits off. CPU seconds of one process and its peak memory,
each size in its own process, within the memory of `--memory-gb`.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from data_tools.equal import EqualJoin  # noqa: E402
from data_tools.near import DISTANCE, NearJoin  # noqa: E402
from data_tools.perceptual_hash import CUTS  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SIZES = (100_000, 1_000_000, 10_000_000)
COUNTED = 100_000
CHUNK = 5000
COPIES = 50


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", choices=MEASURED)
    words.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    words.add_argument("--memory-gb", type=float, default=0.2)
    words.add_argument("--out", type=Path, help="the JSON to write (default: results/duplicates.json or near.json)")
    words.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.what, arguments.one, int(arguments.memory_gb * 1e9))))
        return
    out = arguments.out or RESULTS / ("duplicates.json" if arguments.what == "equal" else "near.json")
    found = {}
    for size in arguments.sizes:
        one = [sys.executable, __file__, arguments.what, "--one", str(size), "--memory-gb", str(arguments.memory_gb)]
        found[size] = json.loads(subprocess.run(one, check=True, capture_output=True, text=True).stdout)
        print(size, found[size], flush=True)
        result = {
            "values": found,
            "memory GB": arguments.memory_gb,
            "numpy": np.__version__,
            "load": os.getloadavg()[0],
        }
        out.write_text(json.dumps(result, indent=1) + "\n")


def measured(what: str, size: int, memory: int) -> dict[str, object]:
    draw, search, expected = MEASURED[what]
    values = draw(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        shared = search(Path(folder), values, memory)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {"CPU s": round(seconds, 2), "CPU us a value": round(1e6 * seconds / size, 3), "MB": round(grown / 1e3)}
    if size <= COUNTED:
        found["same as each with each"] = shared == expected(values)
    return found | {"found": len(shared)}


def chunks(size: int) -> Iterator[slice]:
    return (slice(first, first + CHUNK) for first in range(0, size, CHUNK))


def shared(folder: Path, values: np.ndarray, memory: int) -> list[int]:
    join, places = EqualJoin(folder, len(values), memory), np.arange(len(values), dtype=np.uint64)
    for chunk in chunks(len(values)):
        join.add(values[chunk], places[chunk])
    return join.shared().tolist()


def drawn(size: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 1 << 64, (size, 2), np.uint64)
    copies = draw.integers(1, size, size // COPIES)
    values[copies] = values[draw.integers(0, copies)]
    return values


def counted(values: np.ndarray) -> list[int]:
    texts = [value.tobytes() for value in values]
    times = Counter(texts)
    return [place for place, text in enumerate(texts) if times[text] > 1]


def pairs(folder: Path, values: np.ndarray, memory: int) -> list[tuple[int, int]]:
    join, places = NearJoin(folder, memory, len(CUTS)), np.arange(len(values), dtype=np.uint64)
    colours = (values[:, 0] >> np.uint64(7)) % np.uint64(96)
    for chunk in chunks(len(values)):
        join.add(places[chunk], values[chunk], colours[chunk])
    return list(join.pairs())


def hashes(size: int) -> np.ndarray:
    """Six hashes for each picture, which differ in about 8 bits, as a photograph's do."""
    draw = np.random.default_rng(0)
    first = draw.integers(0, 1 << 64, size, np.uint64)
    copies = draw.integers(1, size, size // COPIES)
    first[copies] = flipped(draw, first[draw.integers(0, copies)], 7)
    return np.stack([first, *(flipped(draw, first, 8) for _ in CUTS[1:])], 1)


def flipped(draw: np.random.Generator, values: np.ndarray, most: int) -> np.ndarray:
    """The values with up to `most` bits of each flipped."""
    for _ in range(most):
        bits = np.uint64(1) << draw.integers(0, 64, len(values), np.uint64)
        values = values ^ np.where(draw.random(len(values)) < 0.9, bits, np.uint64(0))
    return values


def each_with_each(values: np.ndarray) -> list[tuple[int, int]]:
    found, columns = [], np.ascontiguousarray(values.T)
    for second, mine in enumerate(values):
        before = columns[:, :second]
        near = np.bitwise_count(before[0] ^ mine[0]) <= DISTANCE
        for number in range(1, len(columns)):
            near |= np.bitwise_count(before[number] ^ mine[0]) <= DISTANCE
            near |= np.bitwise_count(before[0] ^ mine[number]) <= DISTANCE
        found += [(int(first), second) for first in np.flatnonzero(near)]
    return found


MEASURED = {"equal": (drawn, shared, counted), "near": (hashes, pairs, each_with_each)}


if __name__ == "__main__":
    main()
