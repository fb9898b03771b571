"""What a global shuffle is worth on a corpus with runs of near-duplicates, compared with shuffled blocks of rows.

    python -m benchmarks.shuffle.compare [--seeds 0 1 2 3 4] [--folder runs/shuffle]

World, model and measures are those of `python -m benchmarks.claim`, trained with ITC and ITM. A stopped run resumes,
and a measured one is not run again: results/cells.jsonl has a line for each, from which README.md's tables are made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.claim.cell import ROOT, SIZES, Plan, plan
from benchmarks.claim.corpora import Corpus
from benchmarks.claim.grid import BASELINE, SCENES, Cell
from benchmarks.claim.run import prepare_all, run_and_report, run_here
from benchmarks.claim.table import COLUMNS, MEASURES, comparison_table, markdown, spread
from benchmarks.kept import Record, read_records
from benchmarks.negatives.compare import compare_by_seed
from benchmarks.shuffle.runs import write_runs
from mvlm.checkpoint.state import OrderSpec
from mvlm.data.loading.neighbours import neighbours
from mvlm.data.shards.mixture import Mixture

BATCH = 64
BLOCKS = {"block": 16, "window": 16}
"""A batch takes a quarter of a window, as one of 1,024 does of the default's 64 blocks of 64 rows."""
SETTINGS = (
    f"train.global_batch={BATCH}",
    "train.steps=400",
    "optim.warmup_steps=50",
    "data.workers=0",
    f"data.shuffle_block={BLOCKS['block']}",
    f"data.shuffle_window={BLOCKS['window']}",
)
"""Overrides of all cells; so few updates that models differ."""
ORDERS = {"blocks": OrderSpec("blocks", BLOCKS), "global": OrderSpec("global")}
KEY = "data.shuffle="
PRIMARY = ("foils", "recall")
"""The claim's primary measures: the first is ITM's accuracy, where chance is a half."""
HERE = Path(__file__).parent
CELLS, PAGE = HERE / "results/cells.jsonl", HERE / "README.md"


@dataclass(frozen=True)
class RunsCorpus(Corpus):
    """The claim's corpus, but its training rows come in runs."""

    runs: str = ""

    def train(self, share: int, tune: str = "") -> list[str]:
        return [self.runs]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if done, 1 for a user's mistake, 75 if stopped with everything saved, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/shuffle", help="for the world and training runs")
    parser.add_argument("--results", type=Path, default=CELLS, metavar="FILE", help="where to add a line for each cell")
    args = parser.parse_args(argv)

    def campaign() -> tuple[int, str]:
        corpus = prepared(args.folder)
        code = run_here(plans(corpus, args.seeds, args.folder), args.results, len(args.seeds) * len(ORDERS))
        return code, tables(read_records(args.results), corpus.runs)

    return run_and_report(campaign, PAGE if args.results == CELLS else None)


def prepared(folder: Path) -> RunsCorpus:
    """The claim's world, and its training scenes in runs; made unless they are there."""
    made = prepare_all({SCENES: ""}, folder)[SCENES]
    runs = write_runs(made.train(100), folder / "corpora" / "runs")
    return RunsCorpus(made.name, made.folder, made.foils, made.questions, made.words, str(runs))


def plans(corpus: RunsCorpus, seeds: Sequence[int], folder: Path) -> Iterator[Plan]:
    """Every seed with both orders, seed by seed, so that both have always been run equally often."""
    for seed in seeds:
        for order in ORDERS:
            cell = Cell(SCENES, BASELINE, seed=seed)
            yield plan(cell, SIZES["small"], corpus, folder, (*SETTINGS, f"{KEY}{order}"))


def tables(records: Sequence[Record], runs: str) -> str:
    """Markdown: the numbers for each order, and their comparison."""
    by_order: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        order = next(word.removeprefix(KEY) for word in record["overrides"] if word.startswith(KEY))
        by_order[order][record["seed"]] = record
    compared = [
        ("global − blocks", MEASURES[measure], found)
        for measure in PRIMARY
        if (found := compare_by_seed(by_order["global"], by_order["blocks"], measure))
    ]
    return f"{_numbers(by_order, Mixture([runs]))}\n\n{comparison_table(compared)}"


def _numbers(by_order: dict[str, dict[int, Record]], mixture: Mixture) -> str:
    names = [name for name in COLUMNS if any(name in r["numbers"] for of in by_order.values() for r in of.values())]
    rows = []
    for order, spec in ORDERS.items():
        found = by_order[order].values()
        near = f"{100 * neighbours(mixture, 0, spec, BATCH).share:.1f} %"
        seconds = [record["training_cpu_s"] for record in found if "training_cpu_s" in record]
        cost = f"{statistics.mean(seconds):.0f}" if seconds else ""
        numbers = (spread([record["numbers"][name] for record in found], name) for name in names)
        rows.append([order, near, f"{len(found)}", *numbers, cost])
    head = ["order", "near neighbours in a batch", "seeds", *(COLUMNS[name] for name in names), "training, CPU s"]
    return markdown(head, rows)


if __name__ == "__main__":
    sys.exit(main())
