"""What sharding in parts costs: a task compared with decoding alone, two tasks with one, and all shared work.

    python benchmarks/data/parts.py

CPU seconds, so that other work on the machine matters little; ratios of the same round, medians over rounds. A task's
time is that of its process while it makes parts; it makes the first one twice and counts it once. Shared time is that
of the process that plans, hands out and joins: its growth from two parts to all.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import simplejpeg

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import SIZE, in_memory, photo  # noqa: E402
from data_tools.engines import engine  # noqa: E402
from data_tools.engines.chunks import CHUNK_BYTES  # noqa: E402
from data_tools.origin import open_source  # noqa: E402
from data_tools.part import Part  # noqa: E402
from data_tools.pipeline import Options  # noqa: E402
from data_tools.sharding import parts_of, shard  # noqa: E402
from data_tools.store.destination import open_store  # noqa: E402
from data_tools.task import PartJob, run_part  # noqa: E402

RESULT = Path(__file__).parent / "results" / "parts.json"
warm: list[Part] = []
"""The part that this process has made to warm up."""

COLOURS = {"decode alone, RGB": "RGB", "decode alone, brightness": "GRAY"}
GOALS = {"task / decode alone, RGB": 0.9, "one task / two": 0.9, "shared, % of a task": 1}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--tars", type=int, default=8, help="3 or more (default: 8)")
    words.add_argument("--images", type=int, default=250, help="in each tar (default: 250)")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    arguments = words.parse_args()
    if arguments.tars < 3:
        words.error("--tars: give 3 or more, since shared time is its growth beyond two parts")
    with in_memory() as folder:
        found = measure(Path(folder), arguments.tars, arguments.images, arguments.rounds)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measure(work: Path, tars: int, images: int, rounds: int) -> dict[str, object]:
    photos = [photo(seed) for seed in range(50)]
    for number in range(tars):
        write_tar(work / f"{number:03d}.tar", photos, number * images, images)
    size, all_tars = (work / "000.tar").stat().st_size, [str(path) for path in sorted(work.glob("*.tar"))]
    options, of_two = (made_of(paths, size) for paths in (all_tars, all_tars[:2]))
    count, seconds = tars * images, {name: [] for name in (*COLOURS, "task", "two tasks", "shared")}
    for _ in range(rounds):
        for name, colours in COLOURS.items():
            seconds[name].append(decoding(photos, count, colours) / count)
        seconds["task"].append(tasks(work / "one", options, 1) / count)
        seconds["two tasks"].append(tasks(work / "two", options, 2) / count)
        whole, begun = shared(work / "out", options), shared(work / "out", of_two)
        seconds["shared"].append((whole - begun) / (count - 2 * images))
        print({name: round(1e6 * values[-1], 1) for name, values in seconds.items()}, flush=True)
    return {
        "CPU us a record": {name: round(1e6 * statistics.median(values), 1) for name, values in seconds.items()},
        "ratios": {
            **{f"task / {name}": ratio(seconds[name], seconds["task"]) for name in COLOURS},
            "one task / two": ratio(seconds["task"], seconds["two tasks"]),
            "shared, % of a task": round(100 * ratio(seconds["shared"], seconds["task"]), 2),
        },
        "goals": GOALS,
        "corpus": {"parts": tars, "records": count, "size": SIZE, "mean bytes": sum(map(len, photos)) // len(photos)},
        "rounds": rounds,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def made_of(tars: list[str], shard_bytes: int) -> Options:
    saved = {"source": "webdataset", "paths": tars, "options": {}, "writing": {}}
    return Options(shard_bytes=shard_bytes, origin=saved)


def write_tar(path: Path, photos: list[bytes], first: int, count: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            for ending, content in (("jpg", photos[number % len(photos)]), ("txt", b"photograph %d" % number)):
                member = tarfile.TarInfo(f"{number:08d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def decoding(photos: list[bytes], count: int, colours: str) -> float:
    start = time.process_time()
    for number in range(count):
        simplejpeg.decode_jpeg(photos[number % len(photos)], colours)
    return time.process_time() - start


def timed(job: PartJob, part: Part) -> float:
    """CPU seconds of making a part, in a process that has warmed up."""
    if not warm:
        run_part(job, part)
        warm.append(part)
    start = time.process_time()
    run_part(job, part)
    return time.process_time() - start


def tasks(out: Path, options: Options, workers: int) -> float:
    """CPU seconds of the tasks alone."""
    parts = parts_of(open_source(options.origin or {}), options)
    with open_store(out, resumable=False) as store, engine("local", workers) as run:
        store.begin(None)
        return sum(spent for _, spent in run(partial(timed, PartJob(store, options)), parts, lambda part: CHUNK_BYTES))


def shared(out: Path, options: Options) -> float:
    """CPU seconds of this process while two others make the parts."""
    start = time.process_time()
    shard(open_source(options.origin or {}), out, Options(**vars(options) | {"workers": 2}))
    spent = time.process_time() - start
    shutil.rmtree(out)
    return spent


def ratio(a: list[float], b: list[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


if __name__ == "__main__":
    main()
