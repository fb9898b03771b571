"""Muon against AdamW at equal CPU time: two corpora, three learning rates each, several seeds.

python -m benchmarks.stages.muon [--seeds 0 1 2 3 4] [--folder runs/muon] [--minutes 20]

Corpora, model and measures are those of `python -m benchmarks.stages.itc_first`. What an update costs with each
optimizer is measured first, and Muon makes so many fewer. results/muon.jsonl gets a line for each run; one that is
there is not made again, so the command resumes, and it ends after `--minutes` at the next run's end.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.stages.itc_first import HERE, MEASURED, STEPS, asked, commit, corpora, trained

CELLS = HERE / "results/muon.jsonl"
CORPORA, RATES, OPTIMIZERS = ("scenes", "emoji"), (3e-4, 1e-3, 3e-3), ("adamw", "muon")
MEASURE = "eval/mean_recall"


def main(argv: Sequence[str] | None = None) -> int:
    args = asked(__doc__, "runs/muon", argv)
    until = time.monotonic() + 60 * args.minutes
    data = corpora(args.folder)
    for seed, corpus, rate, name in product(args.seeds, CORPORA, RATES, OPTIMIZERS):
        if time.monotonic() > until:
            return 75
        wanted = {"corpus": corpus, "lr": rate, "optimizer": name, "seed": seed}
        if not any(wanted.items() <= cell.items() for cell in cells()):
            found = wanted | measure(data[corpus], rate, name, seed, args.folder / corpus)
            CELLS.parent.mkdir(exist_ok=True)
            with CELLS.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(table(), flush=True)
    print(table())
    return 0


def cells() -> list[dict[str, Any]]:
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


def measure(folders: tuple[list[str], str], rate: float, name: str, seed: int, home: Path) -> dict[str, Any]:
    """Train with one optimizer at one rate, and return what the last evaluation found."""
    home.mkdir(exist_ok=True)
    steps = round(STEPS * cost("adamw", folders, home) / cost(name, folders, home))
    words = [f"optim.name={name}", f"optim.lr={rate}", f"optim.encoder_lr={rate}", f"train.steps={steps}"]
    run = home / f"{name}-{rate:g}-{seed}"
    seconds = trained(run, folders, "", seed, *words)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in reversed(lines) if MEASURE in line)
    scores = {key: value for key, value in found.items() if key.startswith("eval/")}
    return {"steps": steps, "cpu_s": seconds, "commit": commit(), **scores}


def cost(name: str, folders: tuple[list[str], str], home: Path) -> float:
    """CPU seconds of an update, without what a run costs beside its updates."""
    file = home / f"{name}-cost.json"
    if not file.exists():
        runs = [home / f"{name}-cost-{number}" for number in (1, MEASURED)]
        word = f"optim.name={name}"
        few = trained(runs[0], folders, "", 0, "train.steps=1", word, evaluate=False)
        many = trained(runs[1], folders, "", 0, f"train.steps={MEASURED}", word, evaluate=False)
        file.write_text(json.dumps((many - few) / (MEASURED - 1)))
    return float(json.loads(file.read_text()))


def table() -> str:
    """Markdown: by corpus and rate, the mean over the seeds that both optimizers have."""
    rows = ["| corpus | lr | seeds | AdamW | Muon | difference by seed |", "|---|---|---|---|---|---|"]
    for corpus, rate in product(CORPORA, RATES):
        mine = [cell for cell in cells() if (cell["corpus"], cell["lr"]) == (corpus, rate)]
        sides = [{c["seed"]: c[MEASURE] for c in mine if c["optimizer"] == name} for name in OPTIMIZERS]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if seeds:
            means = (f"{100 * statistics.fmean(side[seed] for seed in seeds):.1f}" for side in sides)
            differences = ", ".join(f"{100 * (sides[1][seed] - sides[0][seed]):+.1f}" for seed in seeds)
            rows.append(f"| {corpus} | {rate:g} | {len(seeds)} | {' | '.join(means)} | {differences} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
