"""Milliseconds of forward and backward of each implementation on one core of a CPU, for docs/kernels.md.

python benchmarks/kernels/cpu.py zen5 [--rounds 15]    # keeps results/zen5.json and writes its table on the page

The sizes are those of a ViT of width 384 with 6 heads on 16 images of 224 pixels, and of texts of 30 tokens. In each
round the implementations take turns, so that a busy neighbour slows them all equally; figures are medians over the
rounds of the process's own CPU time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.kept import put_between
from benchmarks.step.ladder import device_name
from mvlm.kernels.ops import OPS

PAGE = Path(__file__).parents[2] / "docs/kernels.md"
RESULTS = Path(__file__).parent / "results"
PATCHES = "patch embedding"
BATCH, TOKENS, WORDS, WIDTH, HEADS = 16, 197, 30, 384, 6


def heads(tokens: int, dtype: torch.dtype) -> Tensor:
    """B H T d, with strided heads, as a linear layer gives them."""
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


def patch_embedding(dtype: torch.dtype) -> tuple[dict[str, Callable[..., Tensor]], tuple[Tensor, ...]]:
    """The only convolution of a step, in torch's two memory formats."""
    images = torch.randn(BATCH, 3, 224, 224).to(dtype)
    weight, bias = torch.randn(WIDTH, 3, 16, 16).to(dtype).requires_grad_(), torch.zeros(WIDTH, dtype=dtype)

    def convolve(order: torch.memory_format) -> Callable[..., Tensor]:
        def run(weight: Tensor, bias: Tensor) -> Tensor:
            held = images.contiguous(memory_format=order)  # images come channels first
            return conv2d(held, weight.contiguous(memory_format=order), bias, stride=16)

        return run

    runs = {"contiguous": convolve(torch.contiguous_format), "channels-last": convolve(torch.channels_last)}
    return runs, (weight, bias.requires_grad_())


def measure(rounds: int) -> list[dict[str, Any]]:
    lines = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for (name, size), arguments in cases(dtype).items():
            able = [one for one in OPS[name].implementations if not OPS[name].why_not(one)]
            runs = {one.name: one.run for one in able if not one.accepts(*arguments)}
            lines.append({"operation": name, "size": size, "precision": precision})
            lines[-1]["milliseconds"] = milliseconds(runs, arguments, rounds)
            print(json.dumps(lines[-1]), flush=True)
        lines.append({"operation": PATCHES, "size": "16 x 16 pixels of 224 x 224", "precision": precision})
        lines[-1]["milliseconds"] = milliseconds(*patch_embedding(dtype), rounds)
        print(json.dumps(lines[-1]), flush=True)
    return lines


def table(kept: dict[str, Any]) -> str:
    """The page's table for a result."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in kept["lines"]:
        times = ", ".join(f"{who} {ms:.1f}" for who, ms in line["milliseconds"].items())
        found.setdefault((line["operation"], line["size"]), {})[line["precision"]] = times
    rows = [f"| {name} | {size} | {cell['fp32']} | {cell['bf16']} |" for (name, size), cell in found.items()]
    head = ["| operation | size | fp32 | bf16 |", "|---|---|---|---|"]
    return "\n".join([f"{kept['device']}, torch {kept['torch']}:", "", *head, *rows])


def marks(name: str) -> tuple[str, str]:
    return f"<!-- benchmarks/kernels/results/{name}.json -->\n\n", f"\n\n<!-- end of {name} -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the CPU's name, for the file with the result")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = {"device": device_name(), "torch": torch.__version__, "rounds": args.rounds, "lines": measure(args.rounds)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    put_between(PAGE, *marks(args.name), table(kept))


if __name__ == "__main__":
    main()
