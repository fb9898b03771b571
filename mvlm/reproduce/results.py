"""What was measured, beside what was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as Drawn

from mvlm.report.facts import read_json
from mvlm.reproduce.steps import EvaluateStep, Workplace
from mvlm.reproduce.tables import Cell, Table

OURS, PAPER, ALBEF = "this run", "paper", "ALBEF"
MISSING = "–"

Numbers = dict[str, list[float | None]]
"""The numbers of a row by their source; per cent, one for each column."""


def numbers(table: Table, place: Workplace) -> dict[str, Numbers]:
    """The numbers by row; None for those not measured yet."""
    found: dict[str, Numbers] = {}
    for row in table.rows:
        found[row.name] = {OURS: [_measured(cell, place) for cell in row.measured]}
        for whose, published in ((PAPER, row.paper), (ALBEF, row.albef)):
            if published:
                found[row.name][whose] = list(published)
    return found


def _measured(cell: Cell | None, place: Workplace) -> float | None:
    if not cell or not cell.path or not EvaluateStep(place, cell.evaluation).is_done():
        return None
    value: Any = read_json(place.results(cell.evaluation))
    for key in cell.path.split("."):
        value = value[key]
    return 100 * float(value)


def draw(table: Table, found: dict[str, Numbers]) -> Drawn:
    """The table, for a terminal."""
    drawn = Drawn("", "", *table.columns, title=f"{table.title}, %")
    for name, rows in found.items():
        for whose, values in rows.items():
            shown = [MISSING if value is None else f"{value:.2f}" for value in values]
            drawn.add_row(name if whose == OURS else "", whose, *shown)
        drawn.add_section()
    return drawn


def notes(table: Table, place: Workplace) -> list[str]:
    """The protocol, where the published numbers come from, and what was tested."""
    said = [*table.protocol, *table.sources, f"{MISSING}: not measured yet, or not published where we could look."]
    if place.miniature:
        said.append("A rehearsal in miniature: its own numbers say nothing.")
    measured = [each for each in table.evaluations if EvaluateStep(place, each).is_done()]
    found = [(each, read_json(place.results(each)) or {}) for each in measured]
    if found:
        steps = dict.fromkeys(f"{each.run} at step {result['step']:,}" for each, result in found)
        said.append(f"Tested: {', '.join(steps)}.")
    return [*said, *dict.fromkeys(str(result["protocol"]) for _, result in found if "protocol" in result)]


def as_json(table: Table, found: dict[str, Numbers], said: Sequence[str]) -> str:
    content = {"title": table.title, "columns": table.columns, "rows": found, "notes": list(said)}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def figures(table: Table, place: Workplace) -> list[Path]:
    """The pictures and prediction files that evaluations have written."""
    made = [place.results(each).with_suffix("") for each in table.evaluations]
    predictions = [path.with_suffix(".predictions.json") for path in made]
    return [*filter(Path.exists, predictions), *(file for path in made for file in sorted(path.rglob("*.png")))]
