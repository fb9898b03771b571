"""The results of trials: medians over all rounds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from benchmarks.step.ladder import Line
from benchmarks.step.sizes import SIZES
from benchmarks.step.trial import VARIANTS

H100_BF16 = 989e12
"""Operations per second that NVIDIA states for dense bf16 products on an H100 SXM."""


@dataclass(frozen=True)
class Result:
    """A variant in one precision.

    Attributes:
        pairs_per_s: median over all timed steps; `spread` is half the range between the quartiles, as a share of it.
        peak: its operations per second, as a share of those of matrix products in the same process, or of 989 TFLOP/s.
        memory: peak bytes of a step beyond the model, including gradients.
    """

    variant: str
    precision: str
    flops: float
    pairs_per_s: float
    spread: float
    peak: float
    memory: float
    steps: int


def results(lines: list[Line]) -> list[Result]:
    """Results in the order of the variants; those that failed or whose operations were not counted are left out."""
    flops = {line["variant"]: line["flops"] for line in lines if "flops" in line}
    found = []
    for precision in ("fp32", "bf16"):
        for variant in VARIANTS:
            trials = [t for t in lines if (t["variant"], t["precision"]) == (variant, precision) and "seconds" in t]
            if trials and variant in flops:
                found.append(_result(variant, precision, flops[variant], trials))
    return found


def _result(variant: str, precision: str, flops: float, trials: list[Line]) -> Result:
    pairs = SIZES[trials[0]["size"]].pairs
    speeds = sorted(pairs / seconds for trial in trials for seconds in times(trial))
    quarter = len(speeds) // 4
    middle = median(speeds)
    return Result(
        variant=variant,
        precision=precision,
        flops=flops,
        pairs_per_s=middle,
        spread=(speeds[-1 - quarter] - speeds[quarter]) / 2 / middle,
        peak=median(median(pairs / s for s in times(trial)) * flops / _peak(trial) for trial in trials),
        memory=median(trial["peak_bytes"] for trial in trials),
        steps=len(speeds),
    )


def times(trial: Line) -> list[float]:
    """Seconds of the timed steps; on a CPU, those of the process's one thread, which others do not lengthen."""
    return trial["seconds"] if _on_gpu(trial) else trial["cpu_seconds"]


def _peak(trial: Line) -> float:
    return H100_BF16 if _on_gpu(trial) and trial["precision"] == "bf16" else trial["product_flops"]


def _on_gpu(trial: Line) -> bool:
    return "NVIDIA" in trial["device"]
