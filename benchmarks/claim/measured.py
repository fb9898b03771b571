"""The measured cells of the grid, and how two of them compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.claim.grid import Cell, Contrast
from benchmarks.claim.paired import Comparison, compare
from benchmarks.claim.scores import unpack

Seeds = dict[int, dict[str, Any]]
"""The record of each seed, for one kind of cell."""


@dataclass(frozen=True)
class Measured:
    """All cells of one size: `cells[kind][seed]` is the newest record."""

    size: str
    cells: dict[str, Seeds]

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]], size: str) -> Measured:
        cells: dict[str, Seeds] = defaultdict(dict)
        for record in records:
            if record["size"] == size:
                cells[record["cell"]][record["seed"]] = record
        return cls(size, dict(cells))

    @property
    def corpora(self) -> list[str]:
        return list(dict.fromkeys(kind.split("/")[0] for kind in self.cells))

    def values(self, cell: Cell, number: str) -> list[float]:
        """A number of each seed that has it."""
        seeds = self.cells.get(cell.kind, {})
        return [record["numbers"][number] for _, record in sorted(seeds.items()) if number in record["numbers"]]

    def compare(self, contrast: Contrast, measure: str) -> Comparison | None:
        """Compare two cells over the seeds that both have; None if these are fewer than two, or lack the measure."""
        of_treatment, of_control = (self.cells.get(c.kind, {}) for c in (contrast.treatment, contrast.control))
        pairs = [
            (unpack(of_treatment[seed]["rows"][measure]), unpack(of_control[seed]["rows"][measure]))
            for seed in sorted(of_treatment.keys() & of_control.keys())
            if measure in of_treatment[seed]["rows"] and measure in of_control[seed]["rows"]
        ]
        if len(pairs) < 2 or len({len(rows) for pair in pairs for rows in pair}) > 1:
            return None
        return compare(*(np.stack(side) for side in zip(*pairs, strict=True)))
