"""Muon compared with AdamW at equal CPU time: two corpora, three learning rates each, several seeds.

python -m benchmarks.stages.muon [--corpora emoji scenes] [--seeds 0 1 2 3 4] [--steps 450] [--minutes 20]

Corpora, model and measures are those of `python -m benchmarks.stages.itc_first`. What an update costs with each
optimizer is measured first, and Muon makes correspondingly fewer. results/muon.jsonl gets a line for each run; one that
is there is not run again, so the command resumes. After `--minutes` it stops at the end of the current run. `--steps`
are AdamW's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.kept import add_record, code_version, read_records
from benchmarks.stages.itc_first import HERE, SHOWN, asked, compared, corpora, last_evaluation, relative_cost, trained
from mvlm.runtime import dist

CELLS = HERE / "results/muon.jsonl"
CORPORA, RATES, OPTIMIZERS = ("emoji", "scenes"), (3e-4, 1e-3, 3e-3), ("adamw", "muon")
MEASURE = SHOWN[0]


def main(argv: Sequence[str] | None = None) -> int:
    args = asked(__doc__, "runs/muon", CORPORA, argv)
    dist.init()
    until = time.monotonic() + 60 * args.minutes
    data = corpora(args.folder)
    for seed, corpus, rate, name in product(args.seeds, args.corpora, RATES, OPTIMIZERS):
        if time.monotonic() > until:
            return 75
        wanted = {"corpus": corpus, "lr": rate, "optimizer": name, "seed": seed, "of_steps": args.steps}
        if not any(wanted.items() <= cell.items() for cell in read_records(CELLS)):
            home = args.folder / f"{corpus}-{args.steps}"
            add_record(CELLS, wanted | measure(data[corpus], home, rate, name, seed, args.steps))
            print(table(), flush=True)
    print(table())
    return 0


def measure(
    folders: tuple[list[str], str], home: Path, rate: float, name: str, seed: int, steps: int
) -> dict[str, Any]:
    """Train with one optimizer at one rate; returns what the last evaluation found."""
    home.mkdir(exist_ok=True)

    def with_optimizer(which: str, run: Path, updates: int) -> float:
        return trained(run, folders, "", 0, f"train.steps={updates}", f"optim.name={which}", evaluate=False)

    arms = tuple(partial(with_optimizer, which) for which in OPTIMIZERS)
    ratio = 1.0 if name == OPTIMIZERS[0] else relative_cost(home, (arms[0], arms[1]))
    words = [
        f"optim.name={name}",
        f"optim.lr={rate}",
        f"optim.encoder_lr={rate}",
        f"train.steps={round(steps * ratio)}",
    ]
    run = home / f"{name}-{rate:g}-{seed}"
    seconds = trained(run, folders, "", seed, *words)
    return {"ratio": ratio, "cpu_s": seconds, "commit": code_version(), **last_evaluation(run)}


def table() -> str:
    """Markdown: by corpus and rate, means over the seeds that both optimizers have, and differences seed by seed."""
    rows = ["| corpus | updates | lr | seeds | AdamW | Muon | difference by seed |", "|" + "---|" * 7]
    found = read_records(CELLS)
    for corpus, steps, rate in dict.fromkeys((cell["corpus"], cell["of_steps"], cell["lr"]) for cell in found):
        mine = [cell for cell in found if (cell["corpus"], cell["of_steps"], cell["lr"]) == (corpus, steps, rate)]
        before, after = ({c["seed"]: c[MEASURE] for c in mine if c["optimizer"] == name} for name in OPTIMIZERS)
        if seeds := sorted(before.keys() & after.keys()):
            both = compared([before[seed] for seed in seeds], [after[seed] for seed in seeds])
            rows.append(f"| {corpus} | {steps} | {rate:g} | {len(seeds)} | {both} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
