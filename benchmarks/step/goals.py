"""The goals for the fast step on one CPU core, and what it reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.step.medians import Result

OURS = "without_compilation"
"""The step that a run makes on a CPU by default (`train.compile`)."""

Of = dict[str, Result]
"""The results of one precision by variant."""


@dataclass(frozen=True)
class Goal:
    """A number that should be at least, or at most, a bound for each precision."""

    title: str
    bounds: dict[str, float]
    value: Callable[[Of], float]
    needs: tuple[str, ...]
    at_least: bool = True

    def cell(self, precision: str, found: Of) -> str:
        """What was reached, with the bound; empty if it was not measured."""
        if not all(name in found for name in self.needs):
            return ""
        value, bound = self.value(found), self.bounds[precision]
        reached = value >= bound if self.at_least else value <= bound
        sign = "≥" if self.at_least else "≤"
        return f"{value:.2f} ({sign} {bound:g}: {'reached' if reached else '**not reached**'})"


def _plain(found: Of, suffix: str) -> Result:
    """The faster of the two plain steps."""
    return max(found[f"naive{suffix}"], found[f"sdpa{suffix}"], key=lambda result: result.pairs_per_s)


def _speedup(suffix: str) -> Callable[[Of], float]:
    return lambda found: found[OURS].pairs_per_s / _plain(found, suffix).pairs_per_s


def _both(value: float) -> dict[str, float]:
    return {"fp32": value, "bf16": value}


GOALS = (
    Goal("pairs/s, × the faster plain step's", _both(1.45), _speedup(""), (OURS, "naive", "sdpa")),
    Goal("the same, with its text padded to 30", _both(1.45), _speedup("_30"), (OURS, "naive_30", "sdpa_30")),
    Goal(
        "operations per second, × those of matrix products alone",
        {"fp32": 0.70, "bf16": 0.55},
        lambda found: found[OURS].peak,
        (OURS,),
    ),
    Goal(
        "operations per second, × those of ALBEF's own code",
        _both(1.0),
        lambda found: found[OURS].peak / found["albef"].peak,
        (OURS, "albef"),
    ),
    Goal(
        "memory beyond the model, × the faster plain step's",
        _both(0.85),
        lambda found: found[OURS].memory / _plain(found, "").memory,
        (OURS, "naive", "sdpa"),
        at_least=False,
    ),
)


def markdown(found: list[Result]) -> str:
    """A row for each goal that was measured in any precision."""
    by_precision = {
        precision: {result.variant: result for result in found if result.precision == precision}
        for precision in ("fp32", "bf16")
    }
    rows = []
    for goal in GOALS:
        cells = [goal.cell(precision, own) for precision, own in by_precision.items()]
        if any(cells):
            rows.append("| " + " | ".join([goal.title, *cells]) + " |")
    title = "| goal on one core, for the step that a run makes there by default: not compiled | fp32 | bf16 |"
    return "\n".join([title, "| --- | --- | --- |", *rows]) if rows else ""
