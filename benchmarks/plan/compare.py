"""Planned against measured: python benchmarks/plan/compare.py

Each line is a step of the real engine, DeepSpeed included: its peak memory, and the operations of its forward and
backward pass as torch counts them, beside what mvlm/estimate plans. On a CPU, memory is tracked tensor by tensor; on a
GPU it is what torch's allocator has handed out. Writes the figures to results/, and their table into README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

from benchmarks.kept import put_between
from benchmarks.step.ladder import device_name
from benchmarks.step.sizes import SIZES, Size, build, engine_for, make_batch
from mvlm.batch import Batch
from mvlm.estimate.count import FakeModel
from mvlm.estimate.memory import contrastive_bytes, peak
from mvlm.model.flops import GPU, count_flops
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.runtime.live_memory import LiveMemory
from mvlm.training.zero.config import RunSide, resolve
from mvlm.training.zero.memory import Zero, states

README = Path(__file__).parent / "README.md"
RESULTS = Path(__file__).parent / "results"
SMALL_GROUPS = ("objectives.itm_group=4",)


@dataclass(frozen=True)
class Case:
    """One step: `accumulation` micro-batches of `pairs` pairs with captions of the maximum length."""

    size: str
    precision: str
    stage: int
    pairs: int
    accumulation: int = 1
    overrides: tuple[str, ...] = ()


ON_CPU = (
    Case("tiny", "fp32", 1, 4),
    Case("tiny", "fp32", 0, 32),
    Case("tiny", "bf16", 1, 32),
    Case("tiny", "bf16", 2, 8, accumulation=2),
    Case("tiny", "bf16", 3, 32),
    Case("small", "fp32", 1, 8),
    Case("small", "fp32", 1, 8, overrides=("train.recompute=1",)),
    Case("small", "bf16", 2, 8),
    Case("full", "bf16", 1, 4),
)
ON_GPU = (
    Case("full", "bf16", 1, 32),
    Case("full", "bf16", 1, 128),
    Case("full", "bf16", 1, 128, overrides=("train.recompute=0.5",)),
    Case("full", "bf16", 1, 128, overrides=("train.recompute=1",)),
    Case("full", "bf16", 2, 64, accumulation=2),
    Case("full", "bf16", 3, 64),
    Case("full", "fp32", 1, 32),
)


@dataclass(frozen=True)
class Compared:
    """Peak bytes, and operations of a step."""

    planned_memory: float
    measured_memory: float
    planned_flops: float
    counted_flops: float


def compare(case: Case) -> Compared:
    """Run the case; the process group must exist."""
    size = _size(case)
    config, device = size.config, dist.device()
    memory = LiveMemory()
    with memory:
        model = build(size)
    fake = FakeModel(model, config.data, GPU if device.type == "cuda" else "cpu", config.optim)
    batches = [make_batch(size, model.grid, case.pairs, size.config.data.text_length) for _ in range(case.accumulation)]
    counted = _counted(size, batches[0], device) * case.accumulation
    content: dict[str, Any] = {"zero_optimization": {"stage": case.stage, "overlap_comm": True}}
    content["bf16"] = {"enabled": case.precision == "bf16"}
    parts = config.train, config.optim
    resolved = resolve(content, RunSide(("json", "toml"), config.run.dir, *parts, 1, (100, 10), fake.total))
    measured = _peak_of_second_step(model, size, resolved, batches, memory)
    zero = Zero.of(resolved)
    moments = fake.moments_of(case.pairs, zero.element, config.train.recompute)
    held = states(fake.total, zero, 1, case.accumulation, fake.matrices)
    planned = peak(moments, held, contrastive_bytes(fake, config.train.global_batch, 1), case.pairs)
    flops = sum(fake.flops().step.values()) * case.pairs * case.accumulation
    return Compared(planned.total, measured, flops, counted)


def _size(case: Case) -> Size:
    size = SIZES[case.size]
    batch = (f"train.global_batch={case.pairs * case.accumulation}", f"train.micro_batch={case.pairs}")
    return dataclasses.replace(size, overrides=(*size.overrides, *SMALL_GROUPS, *batch, *case.overrides))


def _counted(size: Size, batch: Batch, device: torch.device) -> int:
    """Operations of a separate model, without recomputation, which is no work; the pool is the micro-batch."""
    model, batch = build(size).to(device), batch.to(device)
    return count_flops(lambda: sum(model(batch).values()).backward())


def _peak_of_second_step(
    model: MaskVLM, size: Size, resolved: dict[str, Any], batches: list[Batch], memory: LiveMemory
) -> float:
    """The peak of the second step, since the first one creates the optimiser's state."""
    on_gpu = dist.device().type == "cuda"
    if on_gpu:
        engine = engine_for(model, size.config, resolved)
        engine.step(batches, 0.5, 0)
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        engine.step(batches, 0.5, 1)
        return float(torch.cuda.max_memory_allocated())
    with memory:
        engine = engine_for(model, size.config, resolved)
        engine.step(batches, 0.5, 0)
        gc.collect()
        memory.peak = memory.live
        engine.step(batches, 0.5, 1)
        return float(memory.peak)


def line(kept: dict[str, Any]) -> str:
    """The table's line for a case and its figures."""
    of = 1e9 * kept["pairs"] * kept["accumulation"]
    memory = kept["planned_memory"], kept["measured_memory"]
    flops = kept["planned_flops"], kept["counted_flops"]
    cells = [
        kept["size"],
        kept["precision"],
        str(kept["stage"]),
        f"{kept['accumulation']} x {kept['pairs']}",
        ", ".join(kept["overrides"]) or "-",
        *(f"{value / 1e6:,.0f}" for value in memory),
        f"{(memory[0] / memory[1] - 1) * 100:+.1f} %",
        *(f"{value / of:.2f}" for value in flops),
        f"{(flops[0] / flops[1] - 1) * 100:+.1f} %",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| size | precision | ZeRO | pairs | settings | planned MB | measured MB | | planned GFLOP a pair | counted | |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def table(kept: dict[str, Any]) -> str:
    return "\n".join([f"{kept['device']}, torch {kept['torch']}:\n", HEAD, *map(line, kept["lines"])])


def marks(kind: str) -> tuple[str, str]:
    return f"<!-- table of {kind} -->\n\n", f"\n\n<!-- end of {kind} -->"


def keep(kept: dict[str, Any], kind: str) -> None:
    """Write it to a file, and its table into README.md, between the markers for this kind of device."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{kind}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    put_between(README, *marks(kind), table(kept))


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = words.parse_args()
    torch.set_num_threads(1)
    dist.init()
    kind = "gpu" if dist.uses_cuda() else "cpu"
    lines = []
    for case in ON_GPU if dist.uses_cuda() else ON_CPU:
        if case.size in arguments.sizes:
            lines.append(dataclasses.asdict(case) | dataclasses.asdict(compare(case)))
            print(line(lines[-1]), flush=True)
            gc.collect()
    keep({"device": device_name(), "torch": torch.__version__, "lines": lines}, kind)
    dist.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
