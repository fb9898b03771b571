"""What harder negatives gain: ITM's are drawn from 15, 63 or 255 candidates, with everything else the same.

python -m benchmarks.negatives.compare [--seeds 0 1 2 3 4] [--folder runs/negatives]

World, model and measures are those of `python -m benchmarks.claim`, trained with ITC and ITM in batches of 256 pairs. A
stopped run resumes, and a measured one is not run again: results/cells.jsonl has a line for each, from which
README.md's tables are made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.claim.cell import ROOT, SIZES, Plan, plan
from benchmarks.claim.grid import BASELINE, SCENES, Cell
from benchmarks.claim.paired import Comparison, compare
from benchmarks.claim.run import prepare_all, run_and_report, run_here
from benchmarks.claim.scores import unpack
from benchmarks.claim.table import COLUMNS, MEASURES, comparison_table, markdown, spread
from benchmarks.kept import Record, read_records

GROUPS = (16, 64, 256)
BATCH = max(GROUPS)
SETTINGS = (f"train.global_batch={BATCH}", "train.steps=150", "optim.warmup_steps=50", "data.workers=0")
"""Overrides of all cells; so few updates that models differ."""
KEY = "objectives.itm_group="
PRIMARY = ("foils", "recall")
"""The claim's primary measures."""
HERE = Path(__file__).parent
CELLS, PAGE = HERE / "results/cells.jsonl", HERE / "README.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if done, 1 for a user's mistake, 75 if stopped with everything saved, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/negatives", help="for the world and training runs")
    parser.add_argument("--results", type=Path, default=CELLS, metavar="FILE", help="where to add a line for each cell")
    args = parser.parse_args(argv)

    def campaign() -> tuple[int, str]:
        code = run_here(plans(args.seeds, args.folder), args.results, len(args.seeds) * len(GROUPS))
        return code, tables(read_records(args.results))

    return run_and_report(campaign, PAGE if args.results == CELLS else None)


def plans(seeds: Sequence[int], folder: Path) -> Iterator[Plan]:
    """Every seed with each group, seed by seed, so that groups have always been run equally often."""
    corpus = prepare_all({SCENES: ""}, folder)[SCENES]
    for seed in seeds:
        for group in GROUPS:
            cell = Cell(SCENES, BASELINE, seed=seed)
            yield plan(cell, SIZES["small"], corpus, folder, (*SETTINGS, f"{KEY}{group}"))


def tables(records: Sequence[Record]) -> str:
    """Markdown: the numbers for groups of each size, and larger groups compared with smaller ones."""
    by_group: dict[int, dict[int, Record]] = defaultdict(dict)
    for record in records:
        group = next(word.removeprefix(KEY) for word in record["overrides"] if word.startswith(KEY))
        by_group[int(group)][record["seed"]] = record
    compared = [
        (f"{larger - 1} − {smaller - 1} candidates", MEASURES[measure], found)
        for smaller, larger in combinations(GROUPS, 2)
        for measure in PRIMARY
        if (found := compare_by_seed(by_group[larger], by_group[smaller], measure))
    ]
    return "\n\n".join([_numbers(by_group), *([comparison_table(compared)] if compared else [])])


def _numbers(by_group: dict[int, dict[int, Record]]) -> str:
    names = [name for name in COLUMNS if any(name in r["numbers"] for of in by_group.values() for r in of.values())]
    rows = []
    for group in GROUPS:
        found = by_group[group].values()
        seconds = [record["training_cpu_s"] for record in found if "training_cpu_s" in record]
        cost = f"{statistics.mean(seconds):.0f}" if seconds else ""
        numbers = (spread([record["numbers"][name] for record in found], name) for name in names)
        rows.append([f"{group - 1}", f"{len(found)}", *numbers, cost])
    return markdown(["candidates", "seeds", *(COLUMNS[name] for name in names), "training, CPU s"], rows)


def compare_by_seed(treatment: dict[int, Record], control: dict[int, Record], measure: str) -> Comparison | None:
    """Compare them over the seeds that both have; None if these are fewer than two."""
    seeds = sorted(treatment.keys() & control.keys())
    if len(seeds) < 2:
        return None
    sides = ([unpack(of[seed]["rows"][measure]) for seed in seeds] for of in (treatment, control))
    return compare(*(np.stack(side) for side in sides))


if __name__ == "__main__":
    sys.exit(main())
