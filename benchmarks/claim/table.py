"""The table and the plots of docs/claim.md, drawn from the cells that have been measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.claim import plots
from benchmarks.claim.cell import CELLS
from benchmarks.claim.corpora import ROOT
from benchmarks.claim.grid import contrasts
from benchmarks.claim.measured import Measured
from benchmarks.claim.paired import LEVEL, Comparison
from benchmarks.kept import read_records
from mvlm.errors import UserError

PAGE = ROOT / "docs/claim.md"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"

MEASURES = {"foils": "foils", "recall": "mean recall", "answers": "questions"}
"""The measures by which treatments are compared row by row, and their names in the table."""


def draw(results: Path, folder: Path) -> int:
    """Draw everything that `results` allows, beside it and into the page; returns the exit code.

    Args:
        folder: of training runs, whose checkpoints reconstruct pictures if they still exist.

    Raises:
        UserError: nothing has been measured, or the page has lost its markers.
    """
    records = read_records(results)
    if not records:
        raise UserError(f"{results} has no cell: run `python -m benchmarks.claim run --core` first.")
    texts = []
    for size in dict.fromkeys(record["size"] for record in records):
        measured = Measured.of(records, size)
        texts.append(tables(measured))
        plots.limited_data(measured, results.with_name(f"limited-data-{size}.png"))
        plots.ablation(measured, results.with_name(f"ablation-{size}.png"))
        plots.reconstructions(measured, folder, results.with_name(f"reconstructions-{size}.png"))
    text = "\n\n".join(texts)
    print(text)
    if results == CELLS:
        PAGE.write_text(into_page(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


def tables(measured: Measured) -> str:
    """Markdown: for each corpus, every cell's numbers and every comparison with enough seeds."""
    parts = []
    for corpus in measured.corpora:
        parts.append(f"### {corpus}, size `{measured.size}`\n\n{_numbers(measured, corpus)}")
        if compared := _comparisons(measured, corpus):
            parts.append(compared)
    return "\n\n".join(parts)


COLUMNS = {
    "foils_itm": "foils by ITM",
    "foils_itc": "by ITC",
    "foils_words": "by words",
    "recall_reranked": "mean recall, re-ranked",
    "recall_itc": "by ITC",
    "words_right": "words, right image",
    "words_none": "none",
    "words_wrong": "wrong",
    "answers": "questions",
    "pixels_right": "pixel L1, right text",
    "pixels_none": "none",
}
PER_CENT = {name for name in COLUMNS if not name.startswith("pixels")}


def _numbers(measured: Measured, corpus: str) -> str:
    kinds = [kind for kind in measured.cells if kind.split("/")[0] == corpus]
    used = [
        name for name in COLUMNS if any(name in r["numbers"] for kind in kinds for r in measured.cells[kind].values())
    ]
    rows = []
    for kind in kinds:
        seeds = measured.cells[kind]
        steps, pairs = (next(iter(seeds.values()))[name] for name in ("steps", "pairs"))
        numbers = (spread([r["numbers"][name] for r in seeds.values() if name in r["numbers"]], name) for name in used)
        rows.append([f"`{kind}`", str(len(seeds)), f"{pairs:,}", f"{steps:,}", *numbers])
    return markdown(["cell", "seeds", "pairs", "steps", *(COLUMNS[name] for name in used)], rows)


def spread(values: Sequence[float], name: str) -> str:
    """Mean and, in brackets, standard deviation over the seeds."""
    if not values:
        return ""
    factor, digits = (100, 1) if name in PER_CENT else (1, 3)
    text = f"{factor * statistics.mean(values):.{digits}f}"
    return text + (f" ({factor * statistics.stdev(values):.{digits}f})" if len(values) > 1 else "")


def _comparisons(measured: Measured, corpus: str) -> str:
    rows = []
    for contrast in contrasts(corpus):
        for measure, title in MEASURES.items():
            if found := measured.compare(contrast, measure):
                rows.append((contrast.title, title, found))
    return comparison_table(rows) if rows else ""


COMPARISON = (
    "comparison",
    "measure",
    "difference, points",
    f"{LEVEL:.0%} interval",
    "d",
    "better in",
    "p",
    "sign flips' p",
)


def comparison_table(rows: Iterable[tuple[str, str, Comparison]]) -> str:
    """Args: rows: what is compared, by what measure, and what was found."""
    return markdown(COMPARISON, ([title, measure, *comparison_row(found)] for title, measure, found in rows))


def comparison_row(found: Comparison) -> list[str]:
    """The columns of `COMPARISON` after the first two."""
    return [
        f"{100 * found.difference:+.1f}",
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
        "" if math.isnan(found.effect) else f"{found.effect:+.1f}",
        f"{found.wins:g} of {found.seeds}",
        f"{found.p:.3f}",
        f"{found.flips_p:.3f}",
    ]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def into_page(page: str, text: str) -> str:
    """The page with `text` between its markers.

    Raises:
        UserError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"The page lacks the line {BEGIN} or {END}: put both back, around the tables.")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
