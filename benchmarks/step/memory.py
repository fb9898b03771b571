"""What a step keeps in memory, by kind: python benchmarks/step/memory.py --size small

Weights, gradients, the optimiser's state, what each part of the model keeps for its backward pass, and temporary memory
besides; for several micro-batches and shares of recomputed blocks. Writes results/memory-SIZE.json, a list of objects
in bytes. Tensors are tracked from allocation to release through torch's dispatcher, so the figures do not depend on the
device.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.step.ladder import RESULTS
from benchmarks.step.sizes import SIZES, Size, build, make_batch
from benchmarks.step.trial import PRECISIONS
from mvlm.runtime.live_memory import LiveMemory
from mvlm.training.parallelize import recompute_blocks

RECOMPUTED = (0.0, 0.5, 1.0)
MICRO_BATCHES = (4, 8, 16)


def measure(size: Size, dtype: torch.dtype, pairs: int, recompute: float) -> dict[str, Any]:
    """Bytes by kind, for one micro-batch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(size).to(device, dtype)
    recompute_blocks(model, recompute)
    batch = make_batch(size, model.grid, pairs).to(device)
    memory = LiveMemory()
    kept = _follow(model, memory)
    with memory:
        loss = sum(model(batch).values())
        kept["between"] = memory.live - sum(kept.values())
        activations = memory.live
        forward_peak = memory.peak
        memory.peak = memory.live
        loss.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return {
        "pairs": pairs,
        "text_length": batch.text_BL.shape[1],
        "recompute": recompute,
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": gradients,
        "optimizer": optimizer_bytes(model, dtype),
        "activations": activations,
        "activations_by_part": dict(kept),
        "temporary_forward": forward_peak - activations,
        "temporary_backward": memory.peak - activations,
    }


def optimizer_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """AdamW's two moments in fp32, and the fp32 weights that training in another precision updates."""
    elements = sum(p.numel() for p in model.parameters())
    return elements * 4 * (2 if dtype == torch.float32 else 3)


def _follow(model: nn.Module, memory: LiveMemory) -> Counter[str]:
    """For each child of the model, how much memory grows while one of its modules is called from outside it."""
    kept: Counter[str] = Counter()
    for name, child in model.named_children():
        kept[name] = 0
        before: list[int] = []
        for module in child.modules():
            module.register_forward_pre_hook(_push(before, memory))
            module.register_forward_hook(_pop(before, memory, kept, name))
    return kept


def _push(before: list[int], memory: LiveMemory) -> Callable[..., None]:
    return lambda *_: before.append(memory.live)


def _pop(before: list[int], memory: LiveMemory, kept: Counter[str], name: str) -> Callable[..., None]:
    def pop(*_: Any) -> None:
        start = before.pop()
        if not before:
            gc.collect()  # garbage in reference cycles does not count as kept
            kept[name] += memory.live - start

    return pop


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", choices=SIZES, default="small")
    words.add_argument("--results", type=Path, default=RESULTS)
    arguments = words.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # so that collecting after each module only looks at what the step has made
    size = SIZES[arguments.size]
    size = replace(size, overrides=(*size.overrides, f"objectives.itm_group={MICRO_BATCHES[0]}"))
    found = [
        {"size": size.name, "precision": precision} | measure(size, dtype, pairs, share)
        for precision, dtype in PRECISIONS.items()
        for pairs in MICRO_BATCHES
        for share in RECOMPUTED
    ]
    gc.unfreeze()
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"memory-{size.name}.json"
    path.write_text("[\n" + ",\n".join(json.dumps(line) for line in found) + "\n]\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
