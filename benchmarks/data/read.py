"""How fast encoded images are read back, in order and at random, compared with other formats' libraries.

    python benchmarks/data/read.py

Images per CPU second of one process per format, medians of interleaved rounds in one run on a RAM disk with warm pages.
"Handed over" ends when the caller has the bytes, which by then a mapped file has not touched and a read one has copied;
the other figures include looking at one byte in every 512, which costs every format the same cache misses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import captions, in_memory, photo  # noqa: E402
from benchmarks.data.formats import FORMATS  # noqa: E402
from benchmarks.data.write import machine  # noqa: E402

RESULT = Path(__file__).parent / "results" / "read.json"
HANDED_OVER = "random, handed over"
GOALS = {
    "random, images/CPU-s": 200_000,
    f"{HANDED_OVER}, x folder": 6,
    f"{HANDED_OVER}, x MDS": 10,
    "in order, x webdataset": 15,
}
LIBRARIES = ("pyarrow", "webdataset", "mosaicml-streaming", "litdata", "datasets", "ffcv", "nvidia-dali-cuda120")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", type=int, default=4000, help="images (default: 4000)")
    words.add_argument("--distinct", type=int, default=200, help="different ones among them (default: 200)")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    words.add_argument("--one", nargs=2, metavar=("FORMAT", "CORPUS"), help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one[0], Path(arguments.one[1]))))
        return
    with in_memory() as scratch:
        readable = [name for name, form in FORMATS.items() if form.in_order]
        folders = written(Path(scratch), arguments.count, arguments.distinct, readable)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
        for number in range(arguments.rounds):
            for name, folder in folders.items():
                rounds[name].append(in_a_process(name, folder))
            print("round", number, {name: of[-1] for name, of in rounds.items()}, flush=True)
    found = {name: medians(of) for name, of in rounds.items()}
    result = {"images/CPU-s": found, "goals": GOALS, "rounds": arguments.rounds, "machine": machine() | versions()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def written(scratch: Path, count: int, distinct: int, names: Iterable[str]) -> dict[str, Path]:
    """The corpus in each of these formats whose library is installed."""
    images = [photo(seed) for seed in range(distinct)]
    folders = {}
    for name in names:
        records = ((f"{n:06d}", images[n % distinct], captions(n)) for n in range(count))
        try:
            FORMATS[name].write(records, scratch / name.replace(" ", "-"))
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        folders[name] = scratch / name.replace(" ", "-")
    return folders


def in_a_process(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", name, str(folder)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def measured(name: str, folder: Path) -> dict[str, float]:
    form = FORMATS[name]
    assert form.in_order
    found = {"in order": rate(form.in_order(folder))}
    if form.by_row:
        rows, image = form.by_row(folder)
        order = np.random.default_rng(1).permutation(rows).tolist()
        for row in order[::50]:  # opens the shards, which is measured elsewhere
            image(row)
        repeats = 10 if name == "mvlm" else 1  # or it would be over after a few ticks of the clock
        for key, look in (("random", True), (HANDED_OVER, False)):
            found[key] = rate((image(row) for _ in range(repeats) for row in order), look)
    return found


def rate(images: Iterable[Any], look: bool = True) -> float:
    """Images per CPU second of all threads."""
    began, count = time.process_time(), 0
    for image in images:
        if look:
            bytes(memoryview(image)[::512])
        count += 1
    return count / (time.process_time() - began)


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
