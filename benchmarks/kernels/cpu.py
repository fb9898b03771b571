"""Milliseconds of forward and backward of each implementation on one core of a CPU, as docs/kernels.md quotes them.

python benchmarks/kernels/cpu.py [--rounds 15]

The sizes are those of a ViT of width 384 with 6 heads on 16 images of 224 pixels, and of texts of 30 tokens. Rounds
take the implementations in turn, so that a busy neighbour slows all alike; the figure is the median of the rounds, of
the process's own time on the core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from mvlm.kernels.ops import OPS

BATCH, TOKENS, WORDS, WIDTH, HEADS = 16, 197, 30, 384, 6


def heads(tokens: int, dtype: torch.dtype) -> Tensor:
    """B H T d as a linear layer gives them, the heads strided."""
    return torch.randn(BATCH, tokens, HEADS, WIDTH // HEADS).transpose(1, 2).to(dtype).requires_grad_()


def layer(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes = (BATCH, TOKENS, inputs), (outputs, inputs), (outputs,)
    return tuple(torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)


def cases(dtype: torch.dtype) -> dict[tuple[str, str], tuple]:
    found: dict[tuple[str, str], tuple] = {}
    for queries, keys in ((TOKENS, TOKENS), (TOKENS, WORDS), (WORDS, TOKENS), (WORDS, WORDS)):
        arguments = heads(queries, dtype), heads(keys, dtype), heads(keys, dtype)
        found["attention", f"{queries} queries, {keys} keys"] = arguments
    for factors in ((1, 3), (1, 1), (1, 4), (4, 1)):
        inputs, outputs = (WIDTH * factor for factor in factors)
        found["linear", f"{inputs} to {outputs}"] = layer(inputs, outputs, dtype)
    found["gelu_linear", f"{4 * WIDTH} to {WIDTH}"] = layer(4 * WIDTH, WIDTH, dtype)
    return found


def milliseconds(runs: dict[str, Callable[..., Tensor]], arguments: tuple, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    upstream = torch.randn_like(next(iter(runs.values()))(*arguments))
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            torch.autograd.grad(run(*arguments), arguments, upstream)
            times[name].append(1e3 * (time.process_time() - began))
    return {name: median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| operation | size | precision | milliseconds |\n|---|---|---|---|")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for (name, size), arguments in cases(dtype).items():
            able = [one for one in OPS[name].implementations if not OPS[name].why_not(one)]
            runs = {one.name: one.run for one in able if not one.accepts(*arguments)}
            found = ", ".join(f"{who} {ms:.1f}" for who, ms in milliseconds(runs, arguments, rounds).items())
            print(f"| {name} | {size} | {precision} | {found} |", flush=True)


if __name__ == "__main__":
    main()
