"""The ladder as a picture: pairs per second and operations per pair, rung by rung."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.step.medians import Result
from benchmarks.step.variants import LADDER


def draw(found: list[Result], path: Path) -> None:
    """Draw a bar for every rung that was measured, in one panel for each precision."""
    precisions = [p for p in ("fp32", "bf16") if any(result.precision == p for result in found)]
    figure = Figure(figsize=(9, 0.9 + 2.2 * len(precisions)), layout="constrained")
    for number, precision in enumerate(precisions):
        axes = figure.add_subplot(len(precisions), 1, number + 1)
        rungs = [r for name in LADDER for r in found if (r.variant, r.precision) == (name, precision)]
        speeds = [rung.pairs_per_s for rung in rungs]
        bars = axes.barh(range(len(rungs)), speeds, xerr=[r.spread * r.pairs_per_s for r in rungs], color="tab:blue")
        axes.bar_label(bars, [f"  {r.pairs_per_s:.2f} pairs/s, {r.flops / 1e9:.1f} GF" for r in rungs])
        axes.set_yticks(range(len(rungs)), [LADDER[r.variant].title.partition(" (")[0] for r in rungs])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.4 * max(speeds))
        axes.set_title(f"{precision}: forward and backward pass", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
