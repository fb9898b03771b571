"""What `train.audit` costs, and what it notices: python benchmarks/step/audit.py

Updates of the size *small* on one thread through the engine, with every micro-batch audited or none, show what an audit
takes compared with an update. Then, at the size *tiny*, bits flip one at a time in what modules pass on, forwards or
backwards, in the first of the two computations: how many flips change a loss or a gradient, and how many of these are
noticed. Writes results/audit.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kept import code_version
from benchmarks.step.engine import engine_of
from benchmarks.step.ladder import RESULTS
from benchmarks.step.sizes import SIZES, Size
from mvlm.batch import GlobalBatch, Losses
from mvlm.model.randomness import seed_dropout
from mvlm.training.audit import Audit, Recording
from mvlm.training.engine import Engine
from mvlm.training.global_batches import with_global_batches

FILE = RESULTS / "audit.json"
BITS = {"low mantissa": range(12), "high mantissa": range(12, 23), "exponent and sign": range(23, 32)}
"""Bits of a number in fp32."""


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", choices=SIZES, default="small", help="size of the timed updates")
    words.add_argument("--rounds", type=int, default=3, help="of an update with audit and one without")
    words.add_argument("--flips", type=int, default=600)
    arguments = words.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"commit": code_version()}
    with tempfile.TemporaryDirectory() as folder:
        found["cost"] = cost(audited(SIZES[arguments.size], folder), arguments.rounds)
        print(found["cost"], flush=True)
        found["flips"] = seen(audited(SIZES["tiny"], folder), arguments.flips)
        print(found["flips"], flush=True)
    found |= {"torch": torch.__version__, "load": os.getloadavg()[0]}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def audited(size: Size, folder: str) -> tuple[Engine, Any]:
    return engine_of(0, replace(size, overrides=(*size.overrides, "train.audit=1")), folder)


def cost(made: tuple[Engine, Any], rounds: int) -> dict[str, Any]:
    engine, batch = made
    audit, number = engine.audit, 0
    engine.step([batch], 0.5, number)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(rounds):
        for name, own in seconds.items():
            engine.audit, number = (audit if name == "with" else None), number + 1
            began = time.process_time()
            engine.step([batch], 0.5, number)
            own.append(round(time.process_time() - began, 3))
    ratios = [with_ / without - 1 for with_, without in zip(seconds["with"], seconds["without"], strict=True)]
    return seconds | {"an audit, in updates": round(float(np.median(ratios)), 3)}


class Watched(Audit):
    """Keeps the sums of the last audit."""

    last: dict[str, Tensor]

    def _differs(self, recording: Recording, step: int) -> Tensor:
        self.last = recording.sums
        return super()._differs(recording, step)


def seen(made: tuple[Engine, Any], flips: int) -> dict[str, dict[str, int]]:
    engine, batch = made
    model, draws = engine.model, np.random.default_rng(0)
    audit = Watched(1.0, model, list(model.named_parameters()), engine.objectives, 0)
    leaves = [module for module in model.modules() if not list(module.children()) and list(module.parameters())]
    (_, given), *_ = with_global_batches(model, [batch], lambda _: seed_dropout(0, 0, 0), engine.objectives.itm)
    step = 0

    def once(hook: Callable[..., Any] | None, module: nn.Module | None) -> bool:
        nonlocal step
        step += 1

        def passes(global_batch: GlobalBatch, before_backward: Callable[[Losses, Tensor], None]) -> Losses:
            handle = module.register_forward_hook(hook) if module is not None and hook else None
            losses = model(batch, global_batch)
            if handle:
                handle.remove()
            total = engine.objectives.total(losses)
            before_backward(losses, total)
            total.backward()
            model.zero_grad()
            return losses

        audit.watch(passes, batch, given, step, 0)
        return bool(audit.miscomputed(step))

    assert not once(None, None)
    clean, counts = audit.last, {kind: Counter[str]() for kind in BITS}
    for _ in range(flips):
        kind = list(BITS)[draws.integers(len(BITS))]
        hook = flipping(draws, int(draws.choice(BITS[kind])), backwards=bool(draws.integers(2)))
        found = once(hook, leaves[draws.integers(len(leaves))])
        changed = audit.last.keys() != clean.keys() or any(bool(audit.last[name] != clean[name]) for name in clean)
        counts[kind].update(flips=1, changed=changed, seen=found, false_alarms=found and not changed)
    return {kind: dict(count) for kind, count in counts.items()}


def flipping(draws: np.random.Generator, bit: int, backwards: bool) -> Callable[..., None]:
    """A forward hook that flips a bit of the module's output, or of the gradient that comes back for it."""
    share = draws.random()

    def flip(tensor: Tensor) -> Tensor:
        flipped = tensor.detach().contiguous().clone()
        flipped.view(torch.int32).view(-1)[int(share * tensor.numel())] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
        return flipped

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if not torch.is_tensor(output):
            return
        if backwards and output.requires_grad:
            output.register_hook(flip)
        elif output.is_contiguous():
            output.data.copy_(flip(output))

    return hook


if __name__ == "__main__":
    sys.exit(main())
