"""The contrastive kernels at a large global batch: python benchmarks/gpu/large_batch.py FILE [--global 65536]

A rank's own pairs against the whole global batch, with and without ids of duplicates: the log-sum-exps and the
gradient, in Triton and in torch, which keeps every similarity. Milliseconds, peak bytes beyond the inputs, operations
per second, and the error of some rows against float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.record import (
    InFloat64,
    Line,
    Record,
    device,
    error_of,
    finish,
    milliseconds,
    seconds_left,
    timed,
)
from mvlm.kernels.contrastive import CONTRASTIVE, LOG_SUM_EXPS, contrastive_gradient, log_sum_exps
from mvlm.kernels.dispatch import Implementation, Op

WIDTH, TEMPERATURE, START = 256, 0.07, 64
OWN = (128, 1024)
CHECKED = 64
"""Own rows that are also computed in float64."""
BOUND = 1e-4
TIMES, SECONDS = 10, 2.0


def measure(op: Op, one: Implementation, exact: Tensor, arguments: tuple, own: int, whole: int) -> Line:
    run: Callable[[], Tensor] = partial(one.run, *arguments)
    finish()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    found = run()[: len(exact)]
    facts: Line = {"peak_bytes": torch.cuda.max_memory_allocated() - before} if torch.cuda.is_available() else {}
    error = error_of(found, exact)
    times = timed(run, TIMES, SECONDS)
    products = 2 if op is CONTRASTIVE else 1
    flops = 2 * own * whole * WIDTH * products
    facts |= {"error": error, "bound": BOUND, "holds": error <= BOUND, "milliseconds": milliseconds(times)}
    return facts | {"tflops": flops / min(times) / 1e12}


def campaign(record: Record, whole: int, own: int) -> None:
    generator = torch.Generator(device()).manual_seed(0)
    image_GE, text_GE = (
        F.normalize(torch.randn(whole, WIDTH, device=device(), generator=generator), dim=-1) for _ in "ab"
    )
    temperature = torch.full((1,), TEMPERATURE, device=device())
    many_ids_G2 = torch.randint(0, 4 * whole, (whole, 2), device=device(), generator=generator)
    own_BE = image_GE[START : START + own].contiguous()
    few, in_64 = own_BE[:CHECKED].double(), text_GE.double()
    for ids_G2 in (None, many_ids_G2):
        lse_B = log_sum_exps(own_BE, text_GE, temperature, START, ids_G2)
        lse_G = torch.full((whole,), float(lse_B.mean()), device=device())  # the other ranks' rows: any value will do
        lse_few, divisor = lse_B[:CHECKED].double(), temperature.double()
        with InFloat64():
            exact = {
                LOG_SUM_EXPS: log_sum_exps(few, in_64, divisor, START, ids_G2),
                CONTRASTIVE: contrastive_gradient(few, in_64, divisor, START, lse_few, lse_G.double(), ids_G2),
            }
        given = {
            LOG_SUM_EXPS: (own_BE, text_GE, temperature, START, ids_G2),
            CONTRASTIVE: (own_BE, text_GE, temperature, START, lse_B, lse_G, ids_G2),
        }
        for op, arguments in given.items():
            for one in op.implementations:
                name: Line = {"op": op.name, "implementation": one.name, "own": own, "global": whole}
                name["ids"] = ids_G2 is not None
                if reason := op.why_not(one) or one.accepts(*arguments):
                    record.add(**name, cannot=reason)
                else:
                    record.attempt(name, partial(measure, op, one, exact[op], arguments, own, whole))


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("file", type=Path)
    words.add_argument("--global", dest="whole", type=int, default=65_536)
    words.add_argument("--own", type=int, nargs="+", default=list(OWN))
    arguments = words.parse_args()
    record = Record(arguments.file)
    for own in arguments.own:
        if seconds_left() < 5:
            record.add(own=own, cannot="no time was left")
        else:
            record.attempt({"own": own}, partial(campaign, record, arguments.whole, own))
    return record.exit_code


if __name__ == "__main__":
    sys.exit(main())
