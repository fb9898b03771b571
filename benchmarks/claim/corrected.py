"""The kept cells' comparisons, corrected for their number: python -m benchmarks.claim.corrected

Prints the comparisons that survive Holm's correction over all of them, how many were at a ceiling or floor, and how
many cells come from uncommitted code or were run more than once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.claim.cell import CELLS
from benchmarks.claim.grid import Cell, contrasts
from benchmarks.claim.measured import Measured
from benchmarks.claim.paired import Comparison, holm
from benchmarks.claim.table import COMPARISON, MEASURES, comparison_row, markdown
from benchmarks.kept import Record, read_records

CEILING, FLOOR, LEVEL = 0.99, 0.08, 0.05


@dataclass(frozen=True)
class Question:
    """A comparison that the page lists, with the means of its two sides."""

    title: str
    found: Comparison
    means: tuple[float, float]
    corrected_p: float = 1.0


def questions(records: Sequence[Record]) -> list[Question]:
    """The comparisons of the size `small`, in the page's order, with Holm's p."""
    measured = Measured.of(records, "small")
    asked = list(_questions(measured))
    corrected = holm([each.found.p for each in asked])
    return [Question(each.title, each.found, each.means, p) for each, p in zip(asked, corrected, strict=True)]


def _questions(measured: Measured) -> Iterator[Question]:
    for corpus in measured.corpora:
        for contrast in contrasts(corpus):
            for measure, title in MEASURES.items():
                if found := measured.compare(contrast, measure):
                    means = (_mean(measured, contrast.treatment, measure), _mean(measured, contrast.control, measure))
                    yield Question(f"{corpus}: {contrast.title}, {title}", found, means)


def _mean(measured: Measured, cell: Cell, measure: str) -> float:
    values = measured.values(cell, measure)
    return sum(values) / len(values)


def main() -> None:
    records = read_records(CELLS)
    asked = questions(records)
    high = sum(min(each.means) > CEILING for each in asked)
    low = sum(max(each.means) < FLOOR for each in asked)
    print(f"{len(asked)} comparisons; both sides above {CEILING:.0%} in {high}, both below {FLOOR:.0%} in {low}.")
    alone = [each for each in asked if each.found.p < LEVEL]
    kept = [each for each in asked if each.corrected_p < LEVEL]
    print(f"p below {LEVEL} in {len(alone)} of them; after Holm's correction in {len(kept)}:\n")
    rows = ([each.title, *comparison_row(each.found), f"{each.corrected_p:.3f}"] for each in kept)
    print(markdown([COMPARISON[0], *COMPARISON[2:], "Holm's p"], rows))
    dirty = sum(not record["code"].isalnum() for record in records)
    print(f"\n{dirty} of {len(records)} cells come from code that was not committed.")
    cells = {(record["cell"], record["seed"], record["size"]) for record in records}
    print(f"{len(records) - len(cells)} were run again, which would show how much a cell varies by itself.")


if __name__ == "__main__":
    main()
