"""What opening, drawing, reading and resuming cost as a corpus grows, and how much memory a rank takes.

    python benchmarks/data/scale.py

Shards of 10,000 rows with three captions and an empty image, on a RAM disk: 500 shards are separate files, and any more
are further names of the same files. Each size in its own process, several times in turn; CPU seconds, medians. Larger
sizes are extrapolated by a straight line through the two largest that are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import SIZE, captions, in_memory  # noqa: E402
from benchmarks.data.write import machine  # noqa: E402
from data_tools.writer import CorpusWriter  # noqa: E402
from mvlm.checkpoint.state import OrderSpec  # noqa: E402
from mvlm.config.schema import Data  # noqa: E402
from mvlm.data.loading.sampler import make_sampler, order_of, resumed  # noqa: E402
from mvlm.data.shards.files import Shards  # noqa: E402
from mvlm.data.shards.mixture import Mixture  # noqa: E402
from mvlm.data.shards.schema import MANIFEST, Manifest, read_manifest  # noqa: E402

RESULT = Path(__file__).parent / "results" / "scale.json"
SHARD_ROWS, FILES = 10_000, 500
MEASURED = (5_000_000, 50_000_000, 400_000_000)
EXTRAPOLATED = (5_000_000_000,)
BATCH, READ = 1024, 20_000


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rows", type=int, nargs="+", default=MEASURED)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    words.add_argument("--one", type=Path, metavar="CORPUS", help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one)))
        return
    with in_memory() as scratch:
        folders = {rows: corpus(Path(scratch), rows // SHARD_ROWS) for rows in sorted(arguments.rows)}
        rounds: dict[int, list[dict[str, float]]] = {rows: [] for rows in folders}
        for _ in range(arguments.rounds):
            for rows, folder in folders.items():
                rounds[rows].append(in_a_process(folder))
                print(rows, rounds[rows][-1], flush=True)
            result = summary(rounds) | {"machine": machine()}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def summary(rounds: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    """The result of the rounds so far, so that an interrupted run was not for nothing."""
    found = {rows: {key: statistics.median(one[key] for one in of) for key in of[0]} for rows, of in rounds.items()}
    return {"measured": found, "extrapolated": extrapolated(found), "rounds": min(map(len, rounds.values()))}


def corpus(scratch: Path, count: int) -> Path:
    """A corpus of so many shards, which are names of the same `FILES` files in every corpus."""
    folder, first = scratch / f"{count}", scratch / "first"
    if not first.exists():
        writer = CorpusWriter(first, 10**12)
        for number in range(SHARD_ROWS):
            row = {"key": f"{number:08d}", "image": b"", "captions": captions(number), "source": "benchmark"}
            writer.add(SimpleNamespace(**row, width=SIZE[0], height=SIZE[1], crc32=zlib.crc32(b"")))
        writer.close()
        for number in range(1, FILES):
            for ending in ("arrow", "index"):
                shutil.copy(first / f"000000.{ending}", first / f"{number:06d}.{ending}")
    folder.mkdir()
    for number in range(count):
        for ending in ("arrow", "index"):
            os.link(first / f"{number % FILES:06d}.{ending}", folder / f"{number:06d}.{ending}")
    of_one = read_manifest(first)
    shards = (replace(of_one.shards[0], file=f"{number:06d}.arrow") for number in range(count))
    whole = Manifest(count * of_one.rows, count * of_one.captions, 0, Shards(shards))
    (folder / MANIFEST).write_text(whole.to_json())
    return folder


def in_a_process(folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", str(folder)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def measured(folder: Path) -> dict[str, float]:
    """Figures in CPU seconds, rows per CPU second or megabytes, in the order in which a run meets them."""
    clean = memory()
    found: dict[str, float] = {"manifest, MB": (folder / MANIFEST).stat().st_size / 1e6}
    mixture, found["open"] = timed(lambda: Mixture([folder]))
    sampler = make_sampler(mixture, 0, [OrderSpec("global")])
    found["held when open, MB"] = memory()["VmRSS"] - clean["VmRSS"]
    _, found["first batch, read"] = timed(lambda: read(mixture, sampler(np.arange(BATCH))[0]))
    ninety = int(0.9 * mixture.per_epoch)

    def resume() -> None:
        orders, _ = resumed((OrderSpec("global"),), order_of(Data(shuffle="global")), ninety, mixture.per_epoch)
        at_ninety = make_sampler(mixture, 0, orders)
        read(mixture, at_ninety(np.arange(ninety, ninety + BATCH))[0])

    _, found["resume at 90 %, first batch read"] = timed(resume)
    drawn, seconds = timed(lambda: sampler(np.arange(ninety, ninety + READ))[0])
    found["order, us a position"] = 1e6 * seconds / READ
    few = np.random.default_rng(0).integers(0, 4 * SHARD_ROWS, READ)
    for name, rows in (("4 shards", few), ("all shards", drawn)):
        read(mixture, rows)  # so that as many pages and shards as possible are there
        found[f"rows/CPU-s, {name}"] = READ / timed(lambda rows=rows: read(mixture, rows))[1]
    (opened,) = mixture.corpora
    held = memory()
    found |= {"open shards": len(opened._opened), "page tables, MB": held["VmPTE"]}
    found["private, MB"] = held["RssAnon"] - clean["RssAnon"]
    found["sent to a loader process, MB"] = len(pickle.dumps(mixture)) / 1e6
    numbers = np.random.default_rng(1).permutation(len(opened.manifest.shards))[:FILES].tolist()
    opened._opened.clear()
    kept: list[Any] = []
    found["open a shard, us"] = 1e6 * timed(lambda: kept.extend(map(opened._open_shard, numbers)))[1] / len(numbers)
    return found


def read(mixture: Mixture, rows: np.ndarray) -> None:
    """Whole rows, each checked."""
    for row in rows.tolist():
        mixture.row(row).encoded[0].checked()


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return act(), time.process_time() - began


def memory() -> dict[str, float]:
    """The kinds of memory that this process takes, in megabytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1e3 for words in lines if words[-1] == "kB"}


def extrapolated(found: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """Costs that grow with the shards, on a line through the two largest sizes; the rest as at the largest."""
    if len(found) < 2:
        return {}
    small, large = sorted(found)[-2:]
    grows = ("manifest, MB", "open", "held when open, MB", "sent to a loader process, MB")
    return {
        rows: {
            key: value + (value - found[small][key]) / (large - small) * (rows - large) if key in grows else value
            for key, value in found[large].items()
        }
        for rows in EXTRAPOLATED
    }


if __name__ == "__main__":
    main()
