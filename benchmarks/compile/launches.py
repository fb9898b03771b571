"""How often the host gives the device work in a step, eager and captured: python benchmarks/compile/launches.py

Counted on a CPU, where CUDA graphs are imitated (recorded.py), for a model as deep as the full one but narrow: width
changes no count. Negatives count as the one kernel that draws them on a GPU; blocks are not compiled. Writes
results/launches.json, and its table into README.md.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.compile.recorded import Calls, recording
from benchmarks.compile.releases import README, RESULTS
from benchmarks.kept import code_version, put_between
from benchmarks.step.sizes import Size, build, make_batch, overrides
from mvlm.config.schema import Kernels
from mvlm.data.samples.captions import COARSE
from mvlm.kernels.layers import use_kernels
from mvlm.kernels.negatives import NEGATIVES
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.training.capture import capture_passes
from mvlm.training.engine import Engine
from mvlm.training.kernels import settle_run
from mvlm.training.optim import count_parameters
from mvlm.training.zero.config import RunSide, resolve

FILE = RESULTS / "launches.json"
BEGIN, END = "<!-- launches -->\n\n", "\n\n<!-- end of launches -->"
DEEP = Size("deep", (*overrides(16, 12, 3), "model.image_size=32", "objectives.itm_group=4"), vocabulary=500, pairs=4)
STAGES = {"fp32, stage 0": (0, False), "bf16, ZeRO-1": (1, True)}


@contextmanager
def negatives_as_one_call() -> Iterator[None]:
    """Within, drawing negatives counts as one call, as the Triton kernel would that draws them on a GPU."""
    plain = NEGATIVES.implementations[-1]

    def draw(own_BE: Tensor, *rest: Any) -> Tensor:
        with _disable_current_modes():
            rows_B = plain.run(own_BE, *rest)
        return rows_B.clone()

    with mock.patch.object(NEGATIVES, "implementations", (replace(plain, run=draw),)):
        yield


def model_of(captured: bool, size: Size = DEEP) -> MaskVLM:
    model = build(size)
    settle_run(Kernels())
    use_kernels(model)
    if captured:
        capture_passes(model)
    return model


def engine_of(stage: int, bf16: bool, captured: bool, size: Size = DEEP) -> Engine:
    """The engine of a single rank, as a run makes it."""
    config, model = size.config, model_of(captured, size)
    train = replace(config.train, global_batch=size.pairs)
    side = RunSide(("json", "toml"), "", train, config.optim, 1, (1000, 10), count_parameters(model))
    content: dict[str, Any] = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": bf16}}
    return Engine(model, config.optim, config.objectives, resolve(content, side))


def passes(captured: bool) -> Calls:
    """The calls of the second forward and backward pass."""
    model = model_of(captured)
    batch = make_batch(DEEP, model.grid, rounding=COARSE)
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        with Calls() as calls:
            sum(model(batch).values()).backward()
    return calls


def step(stage: int, bf16: bool, captured: bool) -> Calls:
    """The calls of the engine's second step, DeepSpeed and the optimiser included."""
    engine = engine_of(stage, bf16, captured)
    batch = make_batch(DEEP, engine.model.grid, rounding=COARSE)
    for number in range(2):
        with Calls() as calls:
            engine.step([batch], 1e-3, number)
    return calls


def counted(captured: bool) -> dict[str, dict[str, Any]]:
    found = {"forward and backward": passes(captured)}
    found |= {f"update, {name}": step(*stage, captured) for name, stage in STAGES.items()}
    return {
        name: {
            "graphs": calls.replays,
            "launching": len(calls.launching),
            "views": len(calls.others),
            "most": Counter(calls.launching).most_common(12),
        }
        for name, calls in found.items()
    }


def table(found: dict[str, Any]) -> str:
    lines = ["| step | graphs | other work given to the device | views and the like |", "|---|---|---|---|"]
    for way in ("eager", "captured"):
        for name, one in found[way].items():
            lines.append(f"| {name}, {way} | {one['graphs']} | {one['launching']:,} | {one['views']:,} |")
    return "\n".join(lines)


def main() -> None:
    dist.init()
    with recording(), negatives_as_one_call():
        found: dict[str, Any] = {"commit": code_version(), "torch": torch.__version__}
        found |= {"eager": counted(False), "captured": counted(True)}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    put_between(README, BEGIN, END, table(found))


if __name__ == "__main__":
    main()
