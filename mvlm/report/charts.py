"""Curves as inline SVG that takes its colours from the page, to suit both light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mvlm.report.facts import Curve

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""

COLORS = tuple(f"#0101{number:02x}" for number in range(8))
"""Stand for the page's line colours --line-0, --line-1, ..."""

POINTS = 400
"""The most points in a curve; longer ones are averaged in bins."""

STYLES = ("solid", "dashed", "dotted")
"""Line styles, in turn, so that curves differ not by colour alone; CSS borders use the same names."""


def line_chart(title: str, curves: Sequence[Curve | None], log: bool = False) -> Markup | None:
    """A chart of curves over steps, curve i in the page's line colour i; None if there are no points at all."""
    drawn = [(number, thin(curve)) for number, curve in enumerate(curves) if curve and np.isfinite(curve[1]).any()]
    if not drawn:
        return None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        axes.set_title(title, color=INK, loc="left", fontsize=12, fontweight="bold")
        axes.set_xlabel("step", color=INK)
        axes.tick_params(colors=INK, length=3)
        axes.grid(color=INK, alpha=0.12, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        found = {value for _, (_, values) in drawn for value in values}
        if log and len(found) > 1:
            axes.set_yscale("log")
        for number, (steps, values) in drawn:
            marker = "o" if len(steps) < 15 else None
            color, style = COLORS[number % len(COLORS)], STYLES[number % len(STYLES)]
            axes.plot(steps, values, color=color, linestyle=style, linewidth=1.8, marker=marker, markersize=5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        evaluated = {step for _, (steps, _) in drawn for step in steps}
        if (len(evaluated) == 1 or len(found) == 1) and min(found) >= 0:  # else matplotlib invents a range
            axes.set_ylim(0, 1.3 * max(found) or 1)
        if len(evaluated) == 1:  # label a single point with its value
            (step,) = evaluated
            axes.set(xlim=(0, 1.25 * step), xticks=[0, step])
            for _, (_, values) in drawn:
                axes.annotate(f"{values[0]:.4g}", (step, values[0]), (7, 0), textcoords="offset points", color=INK)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(out.getvalue(), title)


def thin(curve: Curve) -> Curve:
    """The curve with at most POINTS points, each the mean of neighbours."""
    steps, values = curve
    if len(steps) <= POINTS:
        return curve
    bins = np.array_split(np.arange(len(steps)), POINTS)
    return [steps[part[-1]] for part in bins], [float(np.mean([values[i] for i in part])) for part in bins]


def _inline(svg: str, title: str) -> Markup:
    """The <svg> element alone, without namespaces (which HTML implies) or fixed size, coloured by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = (
        re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    )
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1).replace(INK, "currentColor")
    for number, color in enumerate(COLORS):
        svg = svg.replace(color, f"var(--line-{number})")
    return Markup(svg)
