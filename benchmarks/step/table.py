"""What the trials found, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.step.ladder import Line
from benchmarks.step.sizes import SIZES
from benchmarks.step.trial import OPTIMIZER, VARIANTS

H100_BF16 = 989e12
"""Operations a second that NVIDIA states for dense bf16 products of an H100 SXM."""
BEGIN, END = "<!-- table of {} -->", "<!-- end -->"


@dataclass(frozen=True)
class Result:
    """A variant in one precision.

    Attributes:
        pairs_per_s: median over all timed steps; `spread` is its half range between the quartiles, as a share.
        peak: share that its operations have of what the same process's plain matrix products reach, or of 989 TFLOP/s.
        memory: bytes beyond the model at the peak of a step, gradients included.
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
    """In the order of the variants; those that failed or were not counted are left out."""
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
    """Seconds of the timed steps: of this process's one thread on a CPU, which other processes do not lengthen."""
    return trial["seconds"] if _on_gpu(trial) else trial["cpu_seconds"]


def _peak(trial: Line) -> float:
    return H100_BF16 if _on_gpu(trial) and trial["precision"] == "bf16" else trial["product_flops"]


def _on_gpu(trial: Line) -> bool:
    return "NVIDIA" in trial["device"]


def markdown(lines: list[Line]) -> str:
    """A table for each precision, and a sentence on the machine."""
    found = results(lines)
    parts = [_machine(lines)]
    for precision in ("fp32", "bf16"):
        if own := [result for result in found if result.precision == precision]:
            parts.append(_table(own))
    if failures := [line for line in lines if "error" in line]:
        parts.append("\n".join(f"`{f['variant']}` in {f['precision']} failed: {f['error']}" for f in failures))
    return "\n\n".join(parts)


def _machine(lines: list[Line]) -> str:
    devices = " / ".join(sorted({line["device"] for line in lines}))
    loads = [line["load"] for line in lines]
    speeds = []
    for precision in ("fp32", "bf16"):
        if values := [t["product_flops"] for t in lines if t["precision"] == precision and "product_flops" in t]:
            speeds.append(f"{median(values) / 1e9:,.0f} GFLOP/s in {precision}")
    sentences = [f"{devices}; torch {lines[-1]['torch']}; load of the machine {min(loads)} to {max(loads)}."]
    sentences.append(f"Matrix products alone reach {' and '.join(speeds)}.")
    if optimizer := [seconds for line in lines if line["variant"] == OPTIMIZER for seconds in times(line)]:
        sentences.append(f"AdamW, which is no part of the steps below, takes {median(optimizer):.2f} s.")
    return " ".join(sentences)


def _table(found: list[Result]) -> str:
    by_name = {result.variant: result for result in found}
    ratios: list[tuple[str, str, Callable[[Result], float]]] = [
        ("naive", "× naive", lambda result: result.pairs_per_s),
        ("sdpa", "× naive with torch's attention", lambda result: result.pairs_per_s),
        ("sdpa", "memory, of the latter's", lambda result: result.memory),
    ]
    ratios = [ratio for ratio in ratios if ratio[0] in by_name]
    heads = [found[0].precision, "GF/pair", "pairs/s", "±", *(title for _, title, _ in ratios), "% of peak", "GB"]
    rows = [heads, ["---"] * len(heads)]
    for result in found:
        shares = [f"{value(result) / value(by_name[base]):.2f}" for base, _, value in ratios]
        cells = [VARIANTS[result.variant][0], f"{result.flops / 1e9:.1f}", f"{result.pairs_per_s:.2f}"]
        cells += [f"{100 * result.spread:.0f} %", *shares, f"{100 * result.peak:.0f}", f"{result.memory / 1e9:.2f}"]
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def put(text: str, name: str, table: str) -> str:
    """The README with the table of that name in its place.

    Raises:
        ValueError: it has no such place.
    """
    head, begin, rest = text.partition(BEGIN.format(name))
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no place for the table of {name}")
    return f"{head}{begin}\n{table}\n{end}{tail}"
