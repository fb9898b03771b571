"""How fast images come out of a loader as batches, how soon the first one does, and what a loader process weighs.

    python benchmarks/data/loader.py

Decoding, random resized crop to 224 x 224 and flip, without RandAugment, two workers; every loader but the one with
Pillow has the same decoder, and does the same work. Peers (load_peers.py) that are not installed are left out. Images
per CPU second of all threads and processes, a loader a process, on a RAM disk. A ratio is the median of the ratios of
the interleaved rounds, so that other work on the machine, which comes and goes between rounds, falls out of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}

from benchmarks.data.formats import BATCH  # noqa: E402
from benchmarks.data.load_peers import PEERS, PILLOW, SAME_WORK, SCALE, SIZE, WORKERS, make_tokenizer  # noqa: E402

RESULT = Path(__file__).parent / "results" / "loader.json"
OURS, PROCESSES, ALONE = "mvlm, 2 threads", "mvlm, 2 processes", "decoding and augmenting alone"
GOALS = {
    f"images/CPU-s, x {ALONE}": 0.92,
    f"images/CPU-s, x {PROCESSES}": 1 / 0.9,  # at most
    f"images/CPU-s, x {SAME_WORK}": 1.5,
    f"images/CPU-s, x {PILLOW}": 3.8,
    "first batch, s": 0.5,
    "first batch at 90 % of an epoch, s": 0.1,
    "private MB of a process beside buffers": 60,
}


def main() -> None:
    from benchmarks.data.read import versions, written
    from benchmarks.data.write import machine

    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", type=int, default=4000, help="images of the corpus (default: 4000)")
    words.add_argument("--distinct", type=int, default=200, help="different ones among them (default: 200)")
    words.add_argument("--batches", type=int, default=20, help="batches a round (default: 20)")
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    words.add_argument("--one", nargs=2, metavar=("LOADER", "CORPORA"), help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one[0], Path(arguments.one[1]), arguments.batches)))
        return
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=ram) as scratch:
        formats = dict.fromkeys(["mvlm", *(peer.format for peer in PEERS.values())])
        here = written(Path(scratch), arguments.count, arguments.distinct, formats)
        peers = [name for name, peer in PEERS.items() if peer.format in here]
        if "nvidia-dali-cuda120" not in versions():
            peers.remove("DALI, its own decoding")
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, PROCESSES, ALONE, *peers)}
        for _ in range(arguments.rounds):
            for name, of in rounds.items():
                command = [sys.executable, __file__, "--batches", str(arguments.batches), "--one", name, scratch]
                ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                of.append(json.loads(ended.stdout.splitlines()[-1]))
                print(name, of[-1], flush=True)
            result = summary(rounds) | {"machine": machine() | versions()}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    found = {name: {key: statistics.median(one[key] for one in of) for key in of[0]} for name, of in rounds.items()}
    speeds = {name: [one["images/CPU-s"] for one in of] for name, of in rounds.items()}
    ratios = {name: [a / b for a, b in zip(speeds[OURS], speeds[name], strict=True)] for name in speeds if name != OURS}
    return {
        "found": found,
        "ours by threads, x it": {name: round(statistics.median(of), 3) for name, of in ratios.items()},
        "least and most": {name: [round(min(of), 3), round(max(of), 3)] for name, of in ratios.items()},
        "goals": GOALS,
        "rounds": len(speeds[OURS]),
    }


def measured(name: str, corpora: Path, batches: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    if name.startswith("mvlm"):
        return ours(corpora / "mvlm", "processes" if name == PROCESSES else "threads", batches)
    if name == ALONE:
        return {"images/CPU-s": rate(alone(corpora / "mvlm"), batches)}
    began = time.perf_counter()
    peer = PEERS[name]
    stream = peer.batches(corpora / peer.format.replace(" ", "-"))
    next(stream)
    first = time.perf_counter() - began
    return {"images/CPU-s": rate(stream, batches), "first batch, s": first}


def ours(folder: Path, mode: Any, batches: int) -> dict[str, float]:
    from mvlm.config.schema import Data, Objectives
    from mvlm.data.loading.loader import Loader
    from mvlm.data.loading.sampler import make_sampler, order_of
    from mvlm.data.samples.pairs import PairDataset
    from mvlm.data.shards.corpus import Mixture

    data = Data(crop_scale=SCALE, randaugment=(0, 0))
    tokenizer = make_tokenizer()
    options = {"global_batch": BATCH, "micro_batch": BATCH, "workers": WORKERS, "worker_mode": mode}

    def opened(share: float) -> tuple[Any, float]:
        """A loader from that share of an epoch on, and how long its first batch has taken from nothing."""
        began = time.perf_counter()
        dataset = PairDataset(Mixture([folder]), tokenizer, data, Objectives(), 224, 0, (14, 14))
        draws = make_sampler(dataset.mixture, 0, [order_of(data)])
        loader = Loader(dataset, draws, start_position=int(share * len(dataset)), **options)
        next(loader)
        return loader, time.perf_counter() - began

    loader, first = opened(0)
    with loader:
        while mode == "processes" and not are_up(loader):
            next(loader)
        found = {"images/CPU-s": rate(loader, batches), "first batch, s": first}
        if mode == "processes":
            found["private MB of a process beside buffers"] = max(map(private_mb, children()))
    loader, found["first batch at 90 % of an epoch, s"] = opened(0.9)
    loader.close()
    return found


def are_up(loader: Any) -> bool:
    """Whether a loader's processes do its work: until they have started, which peers' do sooner, threads do it."""
    started = loader._processes._all
    return len(started) == WORKERS and all(one.is_up.is_set() for one in started)


def alone(folder: Path) -> Iterator[None]:
    """Batches without end, in memory that is used again, of images that are there; nothing else is done for them."""
    import numpy as np

    from mvlm.data.images.decode import open_picture
    from mvlm.data.images.transforms import train_view
    from mvlm.data.shards.corpus import Mixture

    mixture, rng, out = Mixture([folder]), np.random.default_rng(0), np.empty((BATCH, 3, SIZE, SIZE), np.uint8)
    while True:
        for row, view in zip(rng.integers(len(mixture), size=BATCH).tolist(), out, strict=True):
            train_view(open_picture(mixture.row(row).encoded[0].data), SIZE, rng, SCALE, True, (0, 0), view)
        yield


def rate(stream: Iterable[Any], batches: int) -> float:
    following: Iterator[Any] = iter(stream)
    for _ in range(4):  # what was prepared ahead of the clock
        next(following)
    began = cpu_seconds()
    for _ in range(batches):
        next(following)
    return batches * BATCH / (cpu_seconds() - began)


def cpu_seconds() -> float:
    """Of this process and its children."""
    ticks = 0
    for pid in ("self", *children()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


def private_mb(pid: str) -> float:
    """Beside buffers and mapped shards, whose pages count as private while only one process has touched them."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            counts = "mvlm-images" not in line and ".arrow" not in line
        elif counts and name.startswith("Private_"):
            total += int(values[0])
    return total / 1000


if __name__ == "__main__":
    main()
