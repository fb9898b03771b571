"""Whether a corpus can clean itself: a model trained on it, noise and all, scores its rows; others train on the best.

    python -m benchmarks.filtering.compare [--corpora scenes emoji] [--seeds 0 1 2 3 4] [--folder runs/filtering]

For each seed, 30 % of the images get captions of others; a scorer learns all four objectives from these rows and scores
them with `mvlm score`; then models with ITC and ITM are trained, through `data.where`, on what the filter keeps and on
other selections. A stopped run resumes, and a measured one is not run again: results/cells.jsonl has a line for each
training run, results/auc.jsonl one for each scorer, and README.md's tables are made from both.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.claim.cell import ROOT, SIZES, Plan, plan, trained
from benchmarks.claim.corpora import BUNDLED
from benchmarks.claim.grid import ALL_FOUR, BASELINE, SCENES, Cell
from benchmarks.claim.run import prepare_all, run_and_report, run_here
from benchmarks.claim.table import COLUMNS, MEASURES, comparison_table, markdown, spread
from benchmarks.filtering.noise import NoisyCorpus, with_noise
from benchmarks.kept import Record, add_record, code_version, read_records
from benchmarks.negatives.compare import compare_by_seed
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.location import open_location
from mvlm.data.shards.tables import columns_of
from mvlm.evaluate.score_corpus import score_part
from mvlm.evaluate.scores import Scorer
from mvlm.pretrained.runs import load_run
from mvlm.runtime import dist

SCORER = ("train.steps=1000", "data.workers=0")
TRAINED = ("train.steps=400", "optim.warmup_steps=50", "data.workers=0")
"""So few updates that models differ; the same number in all arms."""
SIGNS = {"itc_similarity": -1, "itm_probability": -1, "text_loss": 1, "image_loss": 1}
"""Scores, and whether a caption is suspect if its score is low (-1) or high (1)."""
KEEP_BY = "itc_similarity"
"""The filter's score, as DFN's; fixed before anything was measured."""
ARMS = ("clean", "filtered", "random", "noisy")
PRIMARY = ("foils", "recall")
HERE = Path(__file__).parent
CELLS, AUC, PAGE = HERE / "results/cells.jsonl", HERE / "results/auc.jsonl", HERE / "README.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if done, 1 for a user's mistake, 75 if stopped with everything saved, 130 if interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", choices=BUNDLED, default=list(BUNDLED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/filtering", help="for corpora and training runs")
    parser.add_argument("--results", type=Path, default=CELLS, metavar="FILE", help="where to add a line for each run")
    parser.add_argument("--auc", type=Path, default=AUC, metavar="FILE", help="where to add a line for each scorer")
    args = parser.parse_args(argv)

    def campaign() -> tuple[int, str]:
        code = run_here(plans(args), args.results, len(args.seeds) * len(args.corpora) * (1 + len(ARMS)))
        return code, tables(read_records(args.results), read_records(args.auc))

    return run_and_report(campaign, PAGE if args.results == CELLS else None)


def plans(args: argparse.Namespace) -> Iterator[Plan]:
    """Every seed's scorer and then, once it is trained, the runs on the rows that it has scored."""
    corpora = prepare_all(dict.fromkeys(args.corpora, ""), args.folder)
    for seed in args.seeds:
        for name in args.corpora:
            corpus = with_noise(corpora[name], seed, args.folder)
            scorer = plan(Cell(name, ALL_FOUR, seed=seed), SIZES["small"], corpus, args.folder, SCORER)
            yield scorer
            if not trained(scorer):
                continue  # another process is training it
            rows = scored(scorer, corpus)
            if all(scorer.settings != record["settings"] for record in read_records(args.auc)):
                add_record(args.auc, auc_record(scorer, rows))
            for condition in conditions(rows).values():
                extra = (*TRAINED, *([f"data.where={condition}"] if condition else []))
                yield plan(Cell(name, BASELINE, seed=seed), SIZES["small"], corpus, args.folder, extra)


def scored(scorer: Plan, corpus: NoisyCorpus) -> pa.Table:
    """Each row's scores and metadata; missing scores are computed."""
    device = dist.device()
    loaded = load_run(scorer.run, device)
    score_part(Scorer(loaded, loaded.eval.batch, device), corpus.noisy)
    location = open_location(corpus.noisy, Cache())
    wanted = (*SIGNS, "exchanged", "pick")
    return pa.concat_tables(columns_of(location, n, wanted)[0] for n in range(len(location.manifest.shards)))


def conditions(rows: pa.Table) -> dict[str, str]:
    """The condition for each arm's rows; all arms but the last have as many rows as have their own captions."""
    exchanged = int(np.sum(rows["exchanged"].to_numpy()))
    bound = float(np.sort(rows[KEEP_BY].to_numpy())[exchanged - 1])
    found = "exchanged = 0", f"{KEEP_BY} > {bound!r}", f"pick < {len(rows) - exchanged}", ""
    return dict(zip(ARMS, found, strict=True))


def auc_record(scorer: Plan, rows: pa.Table) -> dict[str, Any]:
    wrong = rows["exchanged"].to_numpy() == 1
    kept = rows[KEEP_BY].to_numpy() > np.sort(rows[KEEP_BY].to_numpy())[wrong.sum() - 1]
    return {
        "corpus": scorer.cell.corpus,
        "seed": scorer.cell.seed,
        "settings": scorer.settings,
        "code": code_version(),
        "rows": len(rows),
        "exchanged": int(wrong.sum()),
        "wrong_of_kept": round(float(wrong[kept].mean()), 5),
        "auc": {name: round(auc(sign * rows[name].to_numpy(), wrong), 5) for name, sign in SIGNS.items()},
    }


def auc(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The probability that a positive has a higher score than a negative; a tie counts half."""
    _, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    positives = int(positive_N.sum())
    above = rank[place_N][positive_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(score_N) - positives)))


def tables(records: Sequence[Record], aucs: Sequence[dict[str, Any]]) -> str:
    """Markdown: how well wrong captions are found, the numbers of each arm, and comparisons of arms."""
    return "\n\n".join(filter(None, [_auc_table(aucs), _numbers(records), _compared(records)]))


def _auc_table(aucs: Sequence[dict[str, Any]]) -> str:
    rows = []
    for corpus in dict.fromkeys(record["corpus"] for record in aucs):
        found = [record for record in aucs if record["corpus"] == corpus]
        of_names = (np.array([record["auc"][name] for record in found]) for name in SIGNS)
        shares = np.array([record["wrong_of_kept"] for record in found])
        numbers = [f"{values.mean():.3f}" for values in of_names]
        rows.append([corpus, f"{len(found)}", *numbers, f"{100 * shares.mean():.1f} %"])
    return markdown(["corpus", "seeds", *(f"AUC of `{name}`" for name in SIGNS), "wrong captions kept"], rows)


def _by_arm(records: Sequence[Record]) -> dict[tuple[str, str], dict[int, Record]]:
    by_arm: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
    for record in records:
        corpus, objective, *_ = record["cell"].split("/")
        if objective == BASELINE:
            by_arm[corpus, _arm(record["overrides"])][record["seed"]] = record
    return by_arm


def _arm(overrides: Sequence[str]) -> str:
    condition = next((word for word in overrides if word.startswith("data.where=")), "")
    names = {"exchanged": "clean", KEEP_BY: "filtered", "pick": "random", "": "noisy"}
    return names[condition.removeprefix("data.where=").split(" ")[0]]


def _numbers(records: Sequence[Record]) -> str:
    by_arm = _by_arm(records)
    names = [name for name in COLUMNS if any(name in r["numbers"] for of in by_arm.values() for r in of.values())]
    rows = []
    for corpus in dict.fromkeys(corpus for corpus, _ in by_arm):
        for arm in ARMS:
            found = by_arm[corpus, arm].values()
            numbers = (spread([r["numbers"][name] for r in found if name in r["numbers"]], name) for name in names)
            rows.append([corpus, arm, f"{len(found)}", *numbers])
    return markdown(["corpus", "trained on", "seeds", *(COLUMNS[name] for name in names)], rows) if rows else ""


def _compared(records: Sequence[Record]) -> str:
    by_arm = _by_arm(records)
    compared = []
    for corpus in dict.fromkeys(corpus for corpus, _ in by_arm):
        for other in ("clean", "random", "noisy"):
            for measure in PRIMARY if corpus == SCENES else PRIMARY[1:]:
                found = compare_by_seed(by_arm[corpus, "filtered"], by_arm[corpus, other], measure)
                if found:
                    compared.append((f"{corpus}: filtered − {other}", MEASURES[measure], found))
    return comparison_table(compared) if compared else ""


if __name__ == "__main__":
    sys.exit(main())
