"""Many ranks on one machine, forked from a warmed-up process: python benchmarks/ranks/warmed.py SHARDS

A tiny model trains on as many ranks as asked for, a few updates of the same global batch. Memory is the sum of the
proportional set sizes (a page that N processes share counts 1/N for each), read twice a second, including the process
that ranks are forked from, which has imported everything. results/warmed.jsonl gets a line for each number of ranks,
with the losses of the last update, which hardly depend on that number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT)
os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}

from benchmarks.kept import code_version  # noqa: E402
from benchmarks.ranks.counting import keep  # noqa: E402
from tests.conftest import TINY  # noqa: E402
from tests.ranks import mvlm, run_ranks  # noqa: E402

UPDATES, BATCH = 2, 128
LOSSES = ("loss", "image", "text", "itc", "itm")


class PeakMemory(threading.Thread):
    """The peak memory of this process's descendants, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.total = self.of_one = 0.0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            sizes = [proportional_mb(process.pid) for process in psutil.Process().children(recursive=True)]
            self.total, self.of_one = max(self.total, sum(sizes)), max([self.of_one, *sizes])

    def end(self) -> None:
        self._over.set()
        self.join()


def proportional_mb(pid: int) -> float:
    """The proportional set size of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def measured(shards: Path, ranks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run, memory, began = Path(folder) / "run", PeakMemory(), time.monotonic()
        words = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", *TINY]
        words += [f"train.global_batch={BATCH}", f"train.steps={UPDATES}", "checkpoint.every=0", f"run.dir={run}"]
        memory.start()
        done = run_ranks(mvlm, *words, f"data.train={shards}", ranks=ranks, timeout=3000)
        memory.end()
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        world = json.loads((run / "run.json").read_text())["world"]
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "ranks": world,
        "memory_mb": round(memory.total),
        "memory_of_the_largest_mb": round(memory.of_one),
        "seconds": round(time.monotonic() - began),
        "step": last["step"],
        "losses": [last[name] for name in LOSSES],
    }


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("shards", type=Path)
    words.add_argument("--ranks", type=int, nargs="+", default=[1, 16, 64])
    asked = words.parse_args()
    for ranks in asked.ranks:
        keep("warmed.jsonl", measured(asked.shards.absolute(), ranks) | {"commit": code_version()})


if __name__ == "__main__":
    main()
