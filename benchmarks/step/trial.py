"""One measurement in a separate process: python benchmarks/step/trial.py VARIANT --size small --precision bf16

Prints one JSON object: seconds of each timed step, memory that it needs beyond the model, and the speed of plain matrix
products in the same process. With --count it prints the step's operations instead, counted as it runs uncompiled.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.step.peers import PEERS
from benchmarks.step.sizes import SIZES, Size, build
from benchmarks.step.variants import LADDER, PADDED_TO_30, WITHOUT, Prepared
from mvlm.model.flops import count_flops

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRODUCT_SECONDS = 0.4
OPTIMIZER = "adamw"
VARIANTS: dict[str, tuple[str, Callable[..., Prepared]]] = {
    **{name: (rung.title, rung.prepare) for name, rung in (LADDER | WITHOUT | PADDED_TO_30).items()},
    **PEERS,
}


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("variant", choices=[*VARIANTS, OPTIMIZER])
    words.add_argument("--size", choices=SIZES, required=True)
    words.add_argument("--precision", choices=PRECISIONS, required=True)
    words.add_argument("--steps", type=int, default=2, help="timed steps, after one that is not timed")
    words.add_argument("--count", action="store_true")
    arguments = words.parse_args()
    torch.set_num_threads(1)
    size, dtype = SIZES[arguments.size], PRECISIONS[arguments.precision]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.variant == OPTIMIZER:
        found = time_optimizer(size, device, arguments.steps)
    else:
        prepare = VARIANTS[arguments.variant][1]
        if arguments.count:
            found = {"flops": count(prepare(size, device, dtype)) / size.pairs}
        else:
            prepared = prepare(size, device, dtype)
            found = time_step(prepared, device, arguments.steps, lambda: product_flops(size, device, dtype))
            if device.type == "cuda":  # by now its peak memory has been read
                found["flops"] = count(prepared) / size.pairs
    print(json.dumps(found))
    return 0


def count(prepared: Prepared) -> int:
    """Operations of the step; torch's counter sees them only if it runs uncompiled."""
    with torch.compiler.set_stance("force_eager"):
        return count_flops(lambda: prepared.loss().backward())


def time_step(
    prepared: Prepared, device: torch.device, steps: int, measure_products: Callable[[], float]
) -> dict[str, Any]:
    """Forward and backward pass; the first one, which is not timed, also compiles.

    Args:
        measure_products: called before and after every timed step, since the speed of a shared machine changes.
    """

    def step() -> None:
        prepared.model.zero_grad(set_to_none=True)
        prepared.loss().backward()

    gc.collect()
    before = _memory(device)
    step()
    prepared.model.zero_grad(set_to_none=True)
    _forget_peak(device)
    products, times = [measure_products()], []
    for _ in range(steps):
        times.append(_timed(step, device))
        products.append(measure_products())
    return {
        "product_flops": median(products),
        "seconds": [wall for wall, _ in times],
        "cpu_seconds": [cpu for _, cpu in times],
        "model_bytes": sum(p.numel() * p.element_size() for p in prepared.model.parameters()),
        "peak_bytes": _peak(device) - before,
    }


def time_optimizer(size: Size, device: torch.device, steps: int) -> dict[str, Any]:
    """torch's AdamW on fp32 weights, which training in bf16 updates too."""
    model = build(size).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    times = [_timed(optimizer.step, device) for _ in range(steps)]
    return {"seconds": [wall for wall, _ in times], "cpu_seconds": [cpu for _, cpu in times]}


def product_flops(size: Size, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of matrix products of the model's own shapes: the best time of the best shape.

    On a CPU, also in fp32 if `dtype` is bf16, since not every CPU has instructions for bf16.
    """
    with torch.device("meta"):
        vision = build(size).vision
    tokens, width = 2 * size.pairs * (vision.grid[0] * vision.grid[1] + 1), vision.width
    best = 0.0
    shapes = [(width, width), (width, 4 * width), (4 * width, width)]
    dtypes = {dtype, torch.float32} if device.type == "cpu" else {dtype}
    for (inner, outer), each in product(shapes, dtypes):
        a = torch.randn(tokens, inner, device=device, dtype=each)
        weight = nn.Linear(inner, outer, bias=False, device=device, dtype=each).weight.detach()
        _timed(lambda a=a, weight=weight: a @ weight.T, device)
        deadline = time.monotonic() + PRODUCT_SECONDS / len(shapes)
        while time.monotonic() < deadline:
            seconds, _ = _timed(lambda a=a, weight=weight: a @ weight.T, device)
            best = max(best, 2 * tokens * inner * outer / seconds)
    return best


def _timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds of this process."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def _memory(device: torch.device) -> int:
    """Bytes allocated now on the device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak of resident memory


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
