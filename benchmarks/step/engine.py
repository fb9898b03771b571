"""Memory and time of a whole step on a CPU, through the engine and plain: python benchmarks/step/engine.py --size small

The plain step is the naive one of the ladder, followed by clipping and torch's AdamW; the engine is a run's, DeepSpeed
included, on one rank in fp32. They take turns, each in a separate process, round after round. Live memory is that of
all tensors that are alive at once, including weights and moments; resident memory is the process's, beyond what it had
before the model was built. A trial is a line of results/engine-SIZE.jsonl, and trials that it has are skipped; the
table of `small` is written into README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

from benchmarks.kept import add_record, code_version, put_between
from benchmarks.step.ladder import FOLDER, RESULTS, read
from benchmarks.step.sizes import SIZES, Size, build, engine_for, make_batch
from benchmarks.step.table import END
from benchmarks.step.trial import _forget_peak, _memory, _peak
from benchmarks.step.variants import LADDER
from mvlm.batch import Batch
from mvlm.runtime import dist
from mvlm.runtime.cpu import keep_freed_memory
from mvlm.runtime.live_memory import LiveMemory
from mvlm.training.engine import Engine
from mvlm.training.zero.config import RunSide, resolve

CPU = torch.device("cpu")
VARIANTS = {
    "naive": "naive, plain AdamW",
    "sdpa": "naive with torch's attention operator, plain AdamW",
    "stage 0": "the engine, stage 0",
    "stage 1": "the engine, ZeRO-1",
}
BEGIN = "<!-- table of engine.py -->"


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", choices=SIZES, default="small")
    words.add_argument("--rounds", type=int, default=2)
    words.add_argument("--steps", type=int, default=2, help="timed steps per trial")
    words.add_argument("--trial", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = words.parse_args()
    if arguments.trial:
        print(json.dumps(trial(arguments.trial, SIZES[arguments.size], arguments.steps)))
        return 0
    path = RESULTS / f"engine-{arguments.size}.jsonl"
    done = {(line["variant"], line["round"]) for line in read(path)}
    for number in range(arguments.rounds):
        for variant in [variant for variant in VARIANTS if (variant, number) not in done]:
            own = ["--size", arguments.size, "--steps", str(arguments.steps), "--trial", variant]
            found = json.loads(output(sys.executable, __file__, *own).splitlines()[-1])
            line = {"variant": variant, "round": number, "commit": code_version()} | found
            print(line, flush=True)
            add_record(path, line)
    if arguments.size != "small":  # the page has only this size
        return 0
    put_between(FOLDER / "README.md", BEGIN, END, f"\n{table(read(path))}\n")
    return 0


def output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def trial(variant: str, size: Size, steps: int) -> dict[str, Any]:
    """Times from the third step on; the first creates the moments, and the second is tracked for live memory."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if variant.startswith("stage"):
            import deepspeed  # noqa: F401, so that its code does not count as the step's memory
        gc.collect()
        before, live = _memory(CPU), LiveMemory()
        with live:
            step = engine_step(int(variant[-1]), size, folder) if variant[:5] == "stage" else plain_step(variant, size)
            step(0)
            held = live.peak = live.live
            step(1)
        _forget_peak(CPU)
        times = []
        for number in range(2, steps + 2):
            began = time.process_time()
            step(number)
            times.append(time.process_time() - began)
        return {
            "live_peak": live.peak,
            "live_between": held,
            "resident_peak": _peak(CPU) - before,
            "cpu_seconds": times,
            "torch": torch.__version__,
            "load": os.getloadavg()[0],
        }


def plain_step(variant: str, size: Size) -> Callable[[int], None]:
    prepared = LADDER[variant].prepare(size, CPU, torch.float32)
    optimizer = torch.optim.AdamW(prepared.model.parameters(), fused=True)

    def step(_: int) -> None:
        prepared.loss().backward()
        torch.nn.utils.clip_grad_norm_(prepared.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def engine_step(stage: int, size: Size, folder: str) -> Callable[[int], None]:
    engine, batch = engine_of(stage, size, folder)

    def step(number: int) -> None:
        engine.step([batch], 0.5, number)

    return step


def engine_of(stage: int, size: Size, folder: str) -> tuple[Engine, Batch]:
    """The engine of a run, and a batch."""
    keep_freed_memory()
    dist.init()
    size = replace(size, overrides=(*size.overrides, f"train.global_batch={size.pairs}", "train.compile=false"))
    model, config = build(size), size.config
    batch, count = make_batch(size, model.grid), sum(parameter.numel() for parameter in model.parameters())
    side = RunSide(("json", "toml"), folder, config.train, config.optim, 1, (100, 10), count)
    resolved = resolve({"zero_optimization": {"stage": stage}}, side)
    return engine_for(model, config, resolved), batch


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: medians over trials, and their ratios to the naive step's."""
    kinds = ("live_peak", "live_between", "resident_peak")
    rows = [
        "| step | live, at most | × naive | live between steps | resident, at most | × naive | CPU s | naive's / it |"
    ]
    rows.append("|---" * 8 + "|")
    bases: dict[str, float] = {}
    for variant, title in VARIANTS.items():
        own = [line for line in lines if line["variant"] == variant]
        found = {kind: median(line[kind] for line in own) for kind in kinds}
        found["seconds"] = median(seconds for line in own for seconds in line["cpu_seconds"])
        bases = bases or found
        live, between, resident = (f"{found[kind] / 1e9:.2f} GB" for kind in kinds)
        shares = [f"{found[kind] / bases[kind]:.2f}" for kind in ("live_peak", "resident_peak")]
        times = f"{found['seconds']:.2f} | {bases['seconds'] / found['seconds']:.2f}"
        rows.append(f"| {title} | {live} | {shares[0]} | {between} | {resident} | {shares[1]} | {times} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
