"""The results of trials, as tables for the README."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from benchmarks.step import goals
from benchmarks.step.ladder import Line
from benchmarks.step.medians import Result, results, times
from benchmarks.step.trial import OPTIMIZER, VARIANTS

BEGIN, END = "<!-- table of {} -->", "<!-- end -->"


def markdown(lines: list[Line]) -> str:
    """Sentences on the machine, a table for each precision, and which goals for a CPU core were reached."""
    found = results(lines)
    parts = [_machine(lines)]
    for precision in ("fp32", "bf16"):
        if own := [result for result in found if result.precision == precision]:
            parts.append(_table(own))
    if "NVIDIA" not in lines[-1]["device"] and (reached := goals.markdown(found)):
        parts.append(reached)
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
        sentences.append(f"AdamW, which is not part of the steps below, takes {median(optimizer):.2f} s.")
    return " ".join(sentences)


def _table(found: list[Result]) -> str:
    by_name = {result.variant: result for result in found}
    ratios: list[tuple[str, str, Callable[[Result], float]]] = [
        ("naive", "× naive", lambda result: result.pairs_per_s),
        ("sdpa", "× naive with torch's attention", lambda result: result.pairs_per_s),
        ("sdpa", "memory, × the latter's", lambda result: result.memory),
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
    """The README with the table put between the markers of that name.

    Raises:
        ValueError: it has no such markers.
    """
    head, begin, rest = text.partition(BEGIN.format(name))
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no place for the table of {name}")
    return f"{head}{begin}\n{table}\n{end}{tail}"
