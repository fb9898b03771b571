"""The pipeline as a picture: one HTML file without scripts, which a browser reloads until everything has ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from html import escape
from pathlib import Path

from mvlm.errors import UserError

from .submission import Submission
from .view import ENDED, StepView, duration, state_words, views

PAGE = "status.html"
AGAIN_SECONDS = 5
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 200, 62, 60, 18, 12  # pixels of a step's box and between boxes
COLOURS = {
    "unchanged": "#d9e2ec",
    "waiting": "#f4f4f4",
    "running": "#ffe9a8",
    "done": "#c6efce",
    "stopped": "#ffd8a8",
    "failed": "#ffc7ce",
    "blocked": "#e8d5f0",
    "not run": "#f4f4f4",
}
STYLE = """body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5em; color: #222; background: #fff }
table { border-collapse: collapse; margin-top: 1em } td, th { padding: .25em .8em; text-align: left }
tr + tr { border-top: 1px solid #ddd } svg { max-width: 100%; height: auto } code { font-size: 12px }"""


def write_page(logs: Path, found: list[StepView] | None = None) -> Path:
    """Write the page beside the logs. If it cannot be drawn or written, no step fails for that.

    Args:
        found: the views to show; None = from the files alone.
    """
    path = logs / PAGE
    with contextlib.suppress(OSError, UserError):
        submission = Submission.load(logs)
        text = page(submission, views(submission.graph(), submission) if found is None else found)
        partial = path.with_name(f"{PAGE}.{os.getpid()}")  # steps that end at the same time each write it
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return path


def page(submission: Submission, found: list[StepView]) -> str:
    """The HTML."""
    over = all(view.state in ENDED for view in found)
    title = f"{Path(submission.path).stem} on {submission.backend}"
    rows = "\n".join(_row(view) for view in found)
    head = "".join(f"<th>{word}</th>" for word in ("step", "kind", "state", "time", "made", "exit", "log"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
{"" if over else f'<meta http-equiv="refresh" content="{AGAIN_SECONDS}">'}
<style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
{picture(found)}
<table><tr>{head}</tr>
{rows}
</table></body></html>
"""


def picture(found: list[StepView]) -> str:
    """The graph as SVG: what a step waits for is to its left."""
    column: dict[str, int] = {}
    for view in found:
        column[view.name] = max((column[need] + 1 for need in view.needs), default=0)
    filled: dict[int, int] = {}
    at: dict[str, tuple[int, int]] = {}
    for view in found:
        x = column[view.name]
        at[view.name] = (MARGIN + x * (WIDTH + GAP_X), MARGIN + filled.get(x, 0) * (HEIGHT + GAP_Y))
        filled[x] = filled.get(x, 0) + 1
    width = 2 * MARGIN + (max(filled, default=0) + 1) * (WIDTH + GAP_X) - GAP_X
    height = 2 * MARGIN + max(filled.values(), default=1) * (HEIGHT + GAP_Y) - GAP_Y
    parts = [*_edges(found, at), *(_box(view, *at[view.name]) for view in found)]
    return f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _edges(found: list[StepView], at: dict[str, tuple[int, int]]) -> Iterator[str]:
    for view in found:
        x, y = at[view.name]
        for need in view.needs:
            from_x, from_y = at[need][0] + WIDTH, at[need][1] + HEIGHT // 2
            to_y, bend = y + HEIGHT // 2, GAP_X // 2
            curve = f"M{from_x} {from_y} C{from_x + bend} {from_y} {x - bend} {to_y} {x} {to_y}"
            yield f'<path d="{curve}" fill="none" stroke="#888" stroke-width="1.5"/>'


def _box(view: StepView, x: int, y: int) -> str:
    lines = [(view.name, 20, "bold"), (state_words(view), 37, "normal")]
    lines.append((", ".join(filter(None, [duration(view.seconds), view.made])), 53, "normal"))
    texts = "".join(
        f'<text x="{x + 10}" y="{y + down}" font-size="12" font-weight="{weight}">{escape(text)}</text>'
        for text, down, weight in lines
    )
    box = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{COLOURS[view.state]}" stroke="#777"/>'
    return f"<g>{box}{texts}</g>"


def _row(view: StepView) -> str:
    code = "" if view.exit_code is None else str(view.exit_code)
    log = f"<code>{escape(view.log)}</code>" if view.log else ""
    cells = (view.name, view.kind, state_words(view), duration(view.seconds), view.made, code)
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + f"<td>{log}</td></tr>"
