"""What starting and agreeing cost as the ranks grow in number: python benchmarks/ranks

Measured: forks of this process join one process group on loopback as a run does (`mvlm.runtime.dist.init`), with gloo
connecting all ranks to all others or only when first needed, then make the exchange of every step (`BackgroundSum`), a
barrier and a gathering of objects. Requests to the store, the bytes that it sends and each rank's sockets do not depend
on the machine; seconds do.

Simulated: the same exchange, by the same code, on a virtual clock. Each rank is a thread with its own time; a message
takes a random time, plus that of a retransmission if it is lost, and its receiver continues when it arrives. Latencies
are log-normal; `--median-us` is their median. Each line of results/*.jsonl is for one number of ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import queue
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

import torch  # noqa: E402

from benchmarks.ranks.counting import about, counted_stores, keep  # noqa: E402
from mvlm.runtime import background, dist  # noqa: E402
from mvlm.runtime.launch import free_port  # noqa: E402

LAZY = "TORCH_GLOO_LAZY_INIT"
TIMES = 30  # exchanges of a measurement
SPREAD, LOST, AGAIN_S = 0.5, 1e-4, 0.2
"""Standard deviation of a latency's logarithm; share of lost messages; Linux's minimum retransmission time."""
NUMBERS = 12  # in an exchange: StepFlags, a loss, a gradient norm


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--real", type=int, nargs="*", default=[2, 4, 8, 16, 32, 64], help="ranks that are processes")
    words.add_argument("--virtual", type=int, nargs="*", default=[8, 16, 32, 64, 128, 256, 512, 1024])
    words.add_argument("--seeds", type=int, default=20)
    words.add_argument("--median-us", type=float, default=50.0, help="latency of a message (default: 50)")
    asked = words.parse_args()
    for ranks in asked.real:
        for lazy in (False, True):
            keep("measured.jsonl", {"ranks": ranks, "lazy": lazy} | measured(ranks, lazy) | about())
    for ranks in asked.virtual:
        keep("simulated.jsonl", {"ranks": ranks} | simulated(ranks, asked.seeds, asked.median_us * 1e-6) | about())


def measured(ranks: int, lazy: bool) -> dict[str, Any]:
    """The busiest rank's counts and times, and the store's totals over all ranks."""
    context = get_context("fork")
    answers, port = context.SimpleQueue(), free_port()
    forks = [context.Process(target=joined, args=(rank, ranks, port, lazy, answers)) for rank in range(ranks)]
    for fork in forks:
        fork.start()
    found = [answers.get() for _ in forks]
    for fork in forks:
        fork.join()
    return {name: max(one[name] for one in found) for name in found[0] if name not in ("requests", "given")} | {
        "store requests": sum(one["requests"] for one in found),
        "store bytes": sum(one["given"] for one in found),
        "store requests of rank 0": max(one["requests"] for one in found),
    }


def joined(rank: int, ranks: int, port: int, lazy: bool, answers: Any) -> None:
    """Be one rank: join, exchange, report; it leaves when all have reported."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), LAZY: str(int(lazy))}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    stores = counted_stores()
    began = time.perf_counter()
    dist.init()
    found: dict[str, Any] = {"joining, s": time.perf_counter() - began, "sockets, joined": sockets()}
    sums = []
    for _ in range(TIMES):
        began = time.perf_counter()
        total = background.BackgroundSum(torch.ones(NUMBERS, dtype=torch.float64)).wait()
        sums.append(time.perf_counter() - began)
        assert total.tolist() == [ranks] * NUMBERS
    dist.barrier()
    dist.gather_objects(rank)
    found |= {"exchange, s": statistics.median(sums), "sockets, in use": sockets()}
    answers.put(found | {"requests": sum(stores[0].requests.values()), "given": stores[0].given})
    dist.barrier()
    dist.close()


def sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += os.readlink(link).startswith("socket:")
    return count


class VirtualRank(threading.local):
    rank, now, sent, chain = 0, 0.0, 0, 0


class VirtualNetwork:
    """Replaces `torch.distributed` in mvlm/runtime/background.py; its ranks are threads that have their own time.

    Since a receiver names its sender, a message's time depends only on the times of these two, in whatever order the
    threads run.
    """

    def __init__(self, ranks: int, seed: int, median_s: float) -> None:
        self.world, self._seed, self._median = ranks, seed, median_s
        self.here = VirtualRank()
        self._messages: dict[tuple[int, int], queue.SimpleQueue[Any]] = {}
        self._lock = threading.Lock()

    def _way(self, source: int, target: int) -> queue.SimpleQueue[Any]:
        with self._lock:
            return self._messages.setdefault((source, target), queue.SimpleQueue())

    def send(self, tensor: torch.Tensor, target: int, tag: int = 0) -> None:
        here = self.here
        here.sent += 1
        drawn = random.Random(f"{self._seed} {here.rank} {target} {here.sent}")
        late = AGAIN_S if drawn.random() < LOST else 0.0
        arrives = here.now + drawn.lognormvariate(math.log(self._median), SPREAD) + late
        self._way(here.rank, target).put((tensor.clone(), arrives, here.chain + 1))

    def isend(self, tensor: torch.Tensor, target: int, tag: int = 0) -> None:
        self.send(tensor, target)

    def recv(self, tensor: torch.Tensor, source: int, tag: int = 0) -> None:
        value, arrives, chain = self._way(source, self.here.rank).get()
        tensor.copy_(value)
        self.here.now, self.here.chain = max(self.here.now, arrives), max(self.here.chain, chain)

    def exchange(self) -> list[VirtualRank]:
        """Make one exchange; returns every rank's final state."""
        ends: list[Any] = [None] * self.world

        def run(rank: int) -> None:
            self.here.rank = rank
            total = background._sum(torch.ones(NUMBERS, dtype=torch.float64))
            assert total.tolist() == [self.world] * NUMBERS
            ends[rank] = SimpleNamespace(**{name: getattr(self.here, name) for name in ("now", "sent", "chain")})

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends


@contextlib.contextmanager
def on(network: VirtualNetwork) -> Iterator[None]:
    """Have exchanges take place on the virtual network."""
    real = background.torch_dist, background.dist
    background.torch_dist = network  # type: ignore[assignment]
    background.dist = SimpleNamespace(rank=lambda: network.here.rank, world=lambda: network.world)  # type: ignore[assignment]
    try:
        yield
    finally:
        background.torch_dist, background.dist = real


def simulated(ranks: int, seeds: int, median_s: float) -> dict[str, Any]:
    """The slowest rank's times over the seeds, and counts, which are the same for every seed."""
    threading.stack_size(256 * 1024)
    slowest = []
    for seed in range(seeds):
        network = VirtualNetwork(ranks, seed, median_s)
        with on(network):
            ends = network.exchange()
        slowest.append(max(end.now for end in ends))
    return {
        "messages": sum(end.sent for end in ends),
        "messages of a rank": max(end.sent for end in ends),
        "one after the other": max(end.chain for end in ends),
        "rounds": background.rounds(ranks),
        "exchange, s": statistics.median(slowest),
        "longest, s": max(slowest),
        "seeds": seeds,
        "median_us": round(1e6 * median_s, 1),
    }


if __name__ == "__main__":
    main()
