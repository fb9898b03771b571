"""What `train.checksums` costs, and what it notices: python benchmarks/step/checksums.py

It measures how much of an update's CPU seconds is spent on summing bits, at the size *small* on one thread, through the
engine, at ZeRO stages 0 and 1. Then it flips one bit, or two, anywhere in weights and moments, over and over, and
compares the sums. Writes results/checksums.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
from torch import Tensor

from benchmarks.kept import code_version
from benchmarks.step.engine import engine_of
from benchmarks.step.ladder import RESULTS
from benchmarks.step.sizes import SIZES, Size
from mvlm.training.engine import Engine
from mvlm.training.zero.checksums import sum_bits

FILE = RESULTS / "checksums.json"
STAGES = (0, 1)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", choices=SIZES, default="small")
    words.add_argument("--steps", type=int, default=3, help="timed updates per stage")
    words.add_argument("--pairs", type=int, help="per micro-batch (default: the size's)")
    words.add_argument("--flips", type=int, default=1000)
    words.add_argument("--stage", type=int, choices=STAGES, help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.stage is not None:
        size = SIZES[arguments.size]
        size = replace(size, pairs=arguments.pairs or size.pairs)
        print(json.dumps(measure(arguments.stage, size, arguments.steps, arguments.flips)))
        return 0
    found: dict[str, Any] = {"commit": code_version()}
    own = ["--size", arguments.size, "--steps", str(arguments.steps), "--flips", str(arguments.flips)]
    own += ["--pairs", str(arguments.pairs)] if arguments.pairs else []
    for stage in STAGES:
        done = subprocess.run(
            [sys.executable, __file__, *own, "--stage", str(stage)], stdout=subprocess.PIPE, text=True, check=True
        )
        found[f"stage {stage}"] = json.loads(done.stdout.splitlines()[-1])
        print(found[f"stage {stage}"], flush=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(stage: int, size: Size, steps: int, flips: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = replace(size, overrides=(*size.overrides, "train.checksums=true"))
        engine, batch = engine_of(stage, size, folder)
        sums: Any = engine._checksums
        summing: list[float] = []
        sums.keep, sums.changed = (timed(call, summing) for call in (sums.keep, sums.changed))
        engine.step([batch], 0.5, 0)
        summing.clear()
        began = time.process_time()
        for number in range(1, steps + 1):
            engine.step([batch], 0.5, number)
        whole = time.process_time() - began
        return {
            "pairs": size.pairs,
            "steps": steps,
            "cpu_seconds": round(whole, 2),
            "of_them_summing": round(sum(summing), 3),
            "share": round(sum(summing) / whole, 5),
            "flips": flips,
            "seen": {count: seen(engine, flips, count) for count in (1, 2)},
            "torch": torch.__version__,
            "load": os.getloadavg()[0],
        }


def timed(call: Callable[[], Any], spent: list[float]) -> Callable[[], Any]:
    def timing() -> Any:
        began = time.process_time()
        found = call()
        spent.append(time.process_time() - began)
        return found

    return timing


def seen(engine: Engine, flips: int, count: int) -> int:
    """How often flipping `count` bits at once, anywhere in 16 of the rank's tensors, changes their sum."""
    tensors = [tensor.detach().flatten()[:4096].clone() for tensor in engine._state.tensors()][:16]
    before, draws, found = int(sum_bits(tensors)), np.random.default_rng(0), 0
    for _ in range(flips):
        places = [
            (int(draws.integers(len(tensors))), int(draws.integers(4096)), int(draws.integers(32)))
            for _ in range(count)
        ]
        places = list({(number, place % len(tensors[number]), bit) for number, place, bit in places})
        for again in (False, True):
            for number, place, bit in places:
                flip(tensors[number], place, bit)
            found += not again and int(sum_bits(tensors)) != before
    return found


def flip(tensor: Tensor, place: int, bit: int) -> None:
    integers = tensor.view(torch.int32)
    integers[place] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)


if __name__ == "__main__":
    sys.exit(main())
