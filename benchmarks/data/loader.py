"""How fast a loader delivers images in batches, how soon the first batch comes, and how much memory a process takes.

    python benchmarks/data/loader.py

Decoding, random resized crop to 224 x 224 and flip, without RandAugment, two workers; every loader but the one with
Pillow has the same decoder and does the same work. Peers (load_peers.py) that are not installed are left out. Images
per CPU second of all threads and processes, on a RAM disk. Each loader has its own process, which waits while the
others take their turns, a few batches each, round after round. A ratio is the median of the rounds' ratios, so that
other work on the machine, which comes and goes, cancels out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}

from benchmarks.data.corpus import in_memory  # noqa: E402
from benchmarks.data.formats import BATCH  # noqa: E402
from benchmarks.data.load_peers import PEERS, PILLOW, SAME_WORK, SCALE, SIZE, WORKERS, make_tokenizer  # noqa: E402

ANSWER = "answer: "
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
    words.add_argument("--batches", type=int, default=10, help="batches of a turn (default: 10)")
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    words.add_argument("--one", nargs=2, metavar=("LOADER", "CORPORA"), help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.one:
        serve(arguments.one[0], Path(arguments.one[1]), arguments.batches)
        return
    with in_memory() as scratch:
        formats = dict.fromkeys(["mvlm", *(peer.format for peer in PEERS.values())])
        here = written(Path(scratch), arguments.count, arguments.distinct, formats)
        peers = [name for name, peer in PEERS.items() if peer.format in here]
        if "nvidia-dali-cuda120" not in versions():
            peers.remove("DALI, its own decoding")
        loaders = {name: Served(name, scratch, arguments.batches) for name in (OURS, PROCESSES, ALONE, *peers)}
        for _ in range(arguments.rounds):
            for loader in loaders.values():
                loader.turn()
            result = summary(loaders) | {"machine": machine() | versions()}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        for loader in loaders.values():
            loader.end()
    print(json.dumps(result, indent=1))


class Served:
    """A loader in its own process, which has delivered its first batch.

    Attributes:
        found: what was measured besides speed.
        speeds: images per CPU second in each turn.
    """

    def __init__(self, name: str, corpora: str, batches: int):
        command = [sys.executable, __file__, "--batches", str(batches), "--one", name, corpora]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.speeds: list[float] = []
        self.found: dict[str, float] = self._answer()
        print(name, self.found, flush=True)

    def turn(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.speeds.append(self._answer())

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        while not (line := self._process.stdout.readline()).startswith(ANSWER):  # peers print things too
            if not line:
                raise RuntimeError("a loader's process has ended: what it printed is above")
        return json.loads(line.removeprefix(ANSWER))


def summary(loaders: dict[str, Served]) -> dict[str, Any]:
    ours = loaders[OURS].speeds
    ratios = {
        name: [a / b for a, b in zip(ours, loader.speeds, strict=True)]
        for name, loader in loaders.items()
        if name != OURS
    }
    return {
        "found": {
            name: {"images/CPU-s": round(statistics.median(loader.speeds), 1)} | loader.found
            for name, loader in loaders.items()
        },
        "ours by threads, x it": {name: round(statistics.median(of), 3) for name, of in ratios.items()},
        "quarter and three quarters of the rounds": {
            name: [round(statistics.quantiles(of)[at], 3) for at in (0, 2)] for name, of in ratios.items() if of[1:]
        },
        "goals": GOALS,
        "rounds": len(ours),
    }


def serve(name: str, corpora: Path, batches: int) -> None:
    """Print what starting a loader took, and then, for each line read from stdin, its speed over so many batches."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    if name in (OURS, PROCESSES):
        stream = ours(corpora / "mvlm", "processes" if name == PROCESSES else "threads", found)
    elif name == ALONE:
        stream = alone(corpora / "mvlm")
    else:
        began = time.perf_counter()
        stream = PEERS[name].batches(corpora / PEERS[name].format.replace(" ", "-"))
        next(stream)
        found["first batch, s"] = time.perf_counter() - began
    print(ANSWER + json.dumps(found), flush=True)
    for _ in sys.stdin:
        print(ANSWER + json.dumps(rate(stream, batches)), flush=True)


def ours(folder: Path, mode: Any, found: dict[str, float]) -> Iterator[Any]:
    """Our loader, with its processes up; what starting it took goes into `found`."""
    from mvlm.config.schema import Data, Objectives
    from mvlm.data.loading.loader import Loader
    from mvlm.data.loading.sampler import make_sampler, order_of
    from mvlm.data.samples.pairs import PairDataset
    from mvlm.data.shards.mixture import Mixture

    data = Data(crop_scale=SCALE, randaugment=(0, 0))
    tokenizer = make_tokenizer()
    options = {"global_batch": BATCH, "micro_batch": BATCH, "workers": WORKERS, "worker_mode": mode}

    def opened(share: float) -> tuple[Any, float]:
        """A loader from that share of an epoch on, and how long it took from scratch to the first batch."""
        began = time.perf_counter()
        dataset = PairDataset(Mixture([folder]), tokenizer, data, Objectives(), 224, 0, (14, 14))
        draws = make_sampler(dataset.mixture, 0, [order_of(data)])
        loader = Loader(dataset, draws, start_position=int(share * len(dataset)), **options)
        next(loader)
        return loader, time.perf_counter() - began

    loader, found["first batch at 90 % of an epoch, s"] = opened(0.9)
    loader.close()
    loader, found["first batch, s"] = opened(0)
    if mode == "processes":
        while not are_up(loader):
            next(loader)
        found["private MB of a process beside buffers"] = max(map(private_mb, children()))
    return loader


def are_up(loader: Any) -> bool:
    """Whether a loader's processes do its work: until they have started, threads do it."""
    started = loader._processes._all
    return len(started) == WORKERS and all(one.is_up.is_set() for one in started)


def alone(folder: Path) -> Iterator[None]:
    """Endless batches, written into the same memory, from images that are already there; nothing else is done.

    It uses as many threads as the loaders have workers: if two share a core, each is slower than one by itself.
    """
    import numpy as np

    from mvlm.data.images.decode import open_picture
    from mvlm.data.images.transforms import train_view
    from mvlm.data.shards.mixture import Mixture

    mixture, out = Mixture([folder]), np.empty((BATCH, 3, SIZE, SIZE), np.uint8)

    def fill(views: Any, rng: Any) -> None:
        for row, view in zip(rng.integers(len(mixture), size=len(views)).tolist(), views, strict=True):
            train_view(open_picture(mixture.row(row).encoded[0].data), SIZE, rng, SCALE, True, (0, 0), view)

    shares = np.array_split(out, WORKERS)
    rngs = [np.random.default_rng(seed) for seed in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as threads:
        while True:
            list(threads.map(fill, shares, rngs))
            yield


def rate(stream: Iterable[Any], batches: int) -> float:
    following: Iterator[Any] = iter(stream)
    for _ in range(4):  # batches that were prepared before the clock started
        next(following)
    began = cpu_seconds()
    for _ in range(batches):
        next(following)
    return batches * BATCH / (cpu_seconds() - began)


def cpu_seconds() -> float:
    """CPU seconds of this process and its children, including ended ones: some loaders start new ones every epoch."""
    ticks = 0
    for pid in ("self", *children()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


def private_mb(pid: str) -> float:
    """Excluding buffers and mapped shards, whose pages count as private while only one process has touched them."""
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
