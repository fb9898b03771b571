"""How a stream of batches copes with a slow store of high latency, by the order in which it takes the rows.

    python benchmarks/data/store.py

Synthetic shards are copied one by one, each after `--latency` seconds and at `--speed` MB/s, as an object store answers
one connection. A trainer takes `--rate` images a second; how long it waited beyond that, and how much was fetched, are
compared with the same shards in a folder. Each order begins with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.data.corpus import captions, in_memory, photo  # noqa: E402
from benchmarks.data.formats import write_mvlm  # noqa: E402
from benchmarks.data.write import machine  # noqa: E402
from mvlm.config.schema import Data, Objectives  # noqa: E402
from mvlm.data.loading.loader import Loader  # noqa: E402
from mvlm.data.loading.prefetch import start_prefetcher  # noqa: E402
from mvlm.data.loading.sampler import make_sampler, order_of  # noqa: E402
from mvlm.data.samples.pairs import PairDataset  # noqa: E402
from mvlm.data.samples.tokenizer import train_tokenizer  # noqa: E402
from mvlm.data.shards.mixture import training_mixture  # noqa: E402

RESULT = Path(__file__).parent / "results" / "store.json"
BATCH, WORKERS = 64, 2
SHARD = 2 << 20


class Store(LocalFileSystem):
    """Paths after far:// are local ones."""

    protocol = "far"
    latency, speed = 0.0, 1e9  # seconds, bytes a second
    fetched: ClassVar[list[int]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("far://"))

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        size = os.path.getsize(rpath)
        time.sleep(self.latency + size / self.speed)
        super().get_file(rpath, lpath, **options)
        self.fetched.append(size)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--count", type=int, default=6000, help="images (default: 6000)")
    words.add_argument("--latency", type=float, default=0.5, help="seconds before a shard comes (default: 0.5)")
    words.add_argument("--speed", type=float, default=20, help="MB/s of one connection (default: 20)")
    words.add_argument("--rate", type=float, default=500, help="images a second that training takes (default: 500)")
    words.add_argument("--out", type=Path, default=RESULT, help="the JSON to write")
    arguments = words.parse_args()
    fsspec.register_implementation("far", Store)
    Store.latency, Store.speed = arguments.latency, arguments.speed * 1e6
    with in_memory() as scratch:
        folder = Path(scratch) / "shards"
        images = [photo(seed) for seed in range(100)]
        records = ((f"{n:06d}", images[n % 100], captions(n)) for n in range(arguments.count))
        write_mvlm(records, folder, SHARD)
        total = sum(path.stat().st_size for path in folder.glob("*.arrow"))
        found = {}
        for name, url, changes in orders(folder, total):
            data = Data(train=(url,), cache=f"{scratch}/cache-{len(found)}", randaugment=(0, 0), **changes)
            found[name] = epoch(data, arguments.rate) | {"cache, share of the corpus": data.cache_gb * 1e9 / total}
            print(name, found[name], flush=True)
    given = {"latency": arguments.latency, "MB/s": arguments.speed, "images/s": arguments.rate}
    corpus = {"images": arguments.count, "shard MB": SHARD / 1e6, "MB": total / 1e6}
    result = {"found": found, "store": given, "corpus": corpus, "machine": machine()}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def orders(folder: Path, total: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, location of the shards, and settings of `[data]`; a cache has 2.5 times the size of what is shuffled."""
    together = {f"{n} shards together": {"shuffle_shards": n, "cache_gb": 2.5 * n * SHARD / 1e9} for n in (4, 16)}
    return [
        ("a folder, blocks", str(folder), {}),
        ("a folder, 16 shards together", str(folder), {"shuffle_shards": 16}),
        *((f"the store, {name}", f"far://{folder}", changes) for name, changes in together.items()),
        ("the store, blocks", f"far://{folder}", {"cache_gb": 2 * total / 1e9}),
    ]


def epoch(data: Data, images_per_s: float) -> dict[str, float]:
    """One epoch, in which waiting for the first batch is counted apart."""
    Store.fetched.clear()
    began = time.perf_counter()
    tokenizer = train_tokenizer(["a photograph"], 300)
    dataset = PairDataset(training_mixture(data), tokenizer, data, Objectives(), 224, 0, (14, 14))
    draws = make_sampler(dataset.mixture, 0, [order_of(data)])
    ahead = start_prefetcher(dataset.mixture, draws, 0)
    loader = Loader(dataset, draws, global_batch=BATCH, micro_batch=BATCH, workers=WORKERS, prefetcher=ahead)
    most = _Watch(Path(data.cache))
    with loader, most:
        next(loader)
        first, waits, due = time.perf_counter() - began, [], time.perf_counter()
        for _ in range(len(dataset) // BATCH - 1):
            due = max(due, time.perf_counter()) + BATCH / images_per_s
            time.sleep(max(0.0, due - time.perf_counter()))
            asked = time.perf_counter()
            next(loader)
            waits.append(time.perf_counter() - asked)
    rows, _ = draws(np.arange(len(dataset)))
    return {
        "first batch, s": first,
        "waited, s": sum(waits),
        "longest wait, s": max(waits),
        "epoch at that rate, s": len(dataset) / images_per_s,
        "fetched, x the corpus": sum(Store.fetched) / _bytes(dataset),
        "most in the cache, MB": most.most / 1e6,
        "median distance of a batch's rows, share of the corpus": spread(rows),
    }


def _bytes(dataset: PairDataset) -> int:
    return sum(shard.bytes for corpus in dataset.mixture.corpora for shard in corpus.manifest.shards)


def spread(rows: np.ndarray) -> float:
    """How far apart the rows of a batch lie in the corpus: 0.29 if they are drawn from all of it."""
    batches = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)
    apart = [float(np.median(np.abs(batch[:, None] - batch[None]))) for batch in batches]
    return statistics.mean(apart) / len(rows)


class _Watch:
    """Records the most bytes that were in a folder at a time."""

    def __init__(self, folder: Path):
        self.folder, self.most, self._end = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.02):
            self.most = max(self.most, sum(_size(path) for path in self.folder.rglob("*")))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # evicted in between
        return 0


if __name__ == "__main__":
    main()
