"""Every operation of mvlm/kernels by each implementation that can run here: python benchmarks/gpu/time_kernels.py

At the shapes that one micro-batch of a size of benchmarks/step has, forward and backward where it has a gradient. One
JSON object a line: the median of the times in microseconds, and whether a run would take this implementation by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.step.ladder import device_name
from benchmarks.step.sizes import SIZES, Size, build, make_batch
from mvlm.kernels.dispatch import Op
from mvlm.kernels.ops import OPS

TIMES = 20


def cases(size: Size, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operation and arguments; tensors with a gradient ask for the backward pass too."""
    with torch.device("meta"):
        model = build(size)
    batch = make_batch(size, model.grid).to(device)
    width, tokens, pairs, patch = model.vision.width, batch.patch_mask_BN.shape[1] + 1, len(batch), model.vision.patch

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()

    count = model.vision.vit.blocks[0].attn.num_heads
    heads = (2 * pairs, count, tokens, width // count)
    yield "attention", (random(*heads), random(*heads), random(*heads))
    x = (2 * pairs * tokens, width)
    yield "layer_norm", (random(*x), random(width), random(width), 1e-6)
    yield "linear", (random(*x), random(4 * width, width), random(4 * width))
    yield "gelu_linear", (random(x[0], 4 * width), random(width, 4 * width), random(width))
    patch_M = batch.patch_mask_BN.flatten().nonzero().flatten()
    colour = torch.full((3,), 0.5, device=device)
    pixels = random(len(patch_M), 3 * patch**2)
    yield "patch_l1", (pixels, batch.image_BCHW, patch_M, patch, colour, colour, False)
    image_BE, text_BE = (
        F.normalize(random(pairs, size.config.model.contrastive_width).detach().float(), dim=-1) for _ in "ab"
    )
    temperature = torch.full((1,), 0.07, device=device)
    yield "log_sum_exps", (image_BE, text_BE, temperature, 0)
    group = size.config.objectives.itm_group
    yield "negatives", (image_BE, text_BE, temperature, batch.position_B, group, 0, None, False)


def measure(op: Op, arguments: tuple[Any, ...], device: torch.device) -> Iterator[dict[str, Any]]:
    """A line for each implementation, with the reason of one that cannot run."""
    by_itself = op.first(*arguments).name
    for implementation in op.implementations:
        line = {"op": op.name, "implementation": implementation.name, "taken": implementation.name == by_itself}
        reason = op.why_not(implementation) or implementation.accepts(*arguments)
        yield line | ({"cannot": reason} if reason else _times(implementation.run, arguments, device))


def _times(run: Callable[..., Any], arguments: tuple[Any, ...], device: torch.device) -> dict[str, Any]:
    inputs = [argument for argument in arguments if isinstance(argument, Tensor) and argument.requires_grad]

    def step() -> None:
        result = run(*arguments)
        if inputs:
            torch.autograd.grad(result.sum(), inputs)

    step()
    times = [_timed(step, device) for _ in range(TIMES)]
    return {"microseconds": round(1e6 * median(times), 1), "fastest": round(1e6 * min(times), 1)}


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--size", choices=SIZES, default="full" if torch.cuda.is_available() else "tiny")
    words.add_argument("--results", type=Path, help="a file to write to; standard output without it")
    arguments = words.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    machine = {"device": device_name(), "torch": torch.__version__, "size": arguments.size}
    lines = [
        machine | {"precision": str(dtype).removeprefix("torch.")} | line
        for dtype in (torch.float32, torch.bfloat16)
        for name, values in cases(SIZES[arguments.size], device, dtype)
        for line in measure(OPS[name], values, device)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if arguments.results:
        arguments.results.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
