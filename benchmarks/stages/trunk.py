"""A trunk at a constant rate with a decay at each length, compared with a cosine of each length; and the trunk's soup.

python -m benchmarks.stages.trunk [--corpora emoji scenes] [--seeds 0 1 2] [--steps 300] [--minutes 20]

Corpora, model and measures are those of `python -m benchmarks.stages.itc_first`. Lengths are a third, two thirds and
all of `--steps`. Each has its own cosine; the trunk is trained once, to four fifths of the longest, and `mvlm decay`
lowers its rate in the last fifth of each length. The soup is the mean of the trunk's last three checkpoints, a
fifteenth of `--steps` apart, by `mvlm average`. results/trunk.jsonl gets a line for each corpus and seed; one that is
there is not run again, and an interrupted one resumes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.kept import add_record, code_version, read_records
from benchmarks.small.cell import JSON, TOML
from benchmarks.stages.itc_first import HERE, SETTINGS, SHOWN, asked, compared, corpora, last_evaluation

CELLS = HERE / "results/trunk.jsonl"
CORPORA = ("emoji", "scenes")
MEASURE = SHOWN[0]
SOUP = 3


def main(argv: Sequence[str] | None = None) -> int:
    args = asked(__doc__, "runs/trunk", CORPORA, argv, steps=300, seeds=3)
    until = time.monotonic() + 60 * args.minutes
    data = corpora(args.folder)
    for seed, corpus in product(args.seeds, args.corpora):
        if time.monotonic() > until:
            return 75
        wanted = {"corpus": corpus, "seed": seed, "of_steps": args.steps}
        if not any(wanted.items() <= cell.items() for cell in read_records(CELLS)):
            home = args.folder / f"{corpus}-{args.steps}-{seed}"
            home.mkdir(exist_ok=True)
            add_record(CELLS, wanted | measure(data[corpus], home, seed, args.steps))
            print(table(), flush=True)
    print(table())
    return 0


def measure(folders: tuple[list[str], str], home: Path, seed: int, steps: int) -> dict[str, Any]:
    """Mean recall of cosines and decays by length, and of the trunk's end and soup; updates and CPU seconds."""
    lengths = [steps // 3, 2 * steps // 3, steps]
    falls = [length // 5 for length in lengths]
    leaves, every = [length - fall for length, fall in zip(lengths, falls, strict=True)], steps // 15
    began, run, trunk = cpu_seconds(), trainer(folders, home, seed), home / "trunk"
    cosines = {length: run(f"cosine-{length}", f"train.steps={length}") for length in lengths}
    cosine_s, began = cpu_seconds() - began, cpu_seconds()
    kept = (f"train.steps={leaves[-1]}", "optim.schedule=constant", f"checkpoint.every={every}", "checkpoint.keep=100")
    end = run("trunk", *kept)
    for leave, fall in zip(leaves, falls, strict=True):
        mvlm("decay", trunk, "--at", leave, "--steps", fall, "--out", home / f"decay-{leave}")
    fallen_s = cpu_seconds() - began
    branches = [json.loads((home / f"decay-{leave}/decay.json").read_text())["branches"][0] for leave in leaves]
    parts = [trunk / f"checkpoints/step_{leaves[-1] - every * back:08d}" for back in reversed(range(SOUP))]
    if not (home / "soup.json").exists():
        mvlm("average", *parts, "--out", home / "soup", "--data", folders[1], "--json", home / "soup.json")
    return {
        "lengths": lengths,
        "cosine": [cosines[length] for length in lengths],
        "fallen": [branch["decayed"][MEASURE] for branch in branches],
        "trunk": end,
        "soup": json.loads((home / "soup.json").read_text())[str(home / "soup")][MEASURE],
        "updates": {"cosines": sum(lengths), "trunk and falls": leaves[-1] + sum(falls)},
        "cpu_s": {"cosines": round(cosine_s), "trunk and falls": round(fallen_s)},
        "commit": code_version(),
    }


def trainer(folders: tuple[list[str], str], home: Path, seed: int) -> Any:
    """A function that trains a run of a given name, unless it is there, and returns its last mean recall."""
    always = [f"data.train={json.dumps(folders[0])}", f"data.eval={folders[1]}", f"run.seed={seed}", "eval.every=0"]

    def run(name: str, *overrides: str) -> float:
        folder = home / name
        mvlm("train", TOML, "--deepspeed_config", JSON, *SETTINGS, *always, f"run.dir={folder}", *overrides)
        return last_evaluation(folder)[MEASURE]

    return run


def mvlm(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "mvlm", *map(str, words)], check=True)


def cpu_seconds() -> float:
    """CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table() -> str:
    """Markdown: by corpus and length, means over seeds in per cent, and the differences seed by seed."""
    rows = ["| corpus | updates | seeds | cosine | trunk and fall | difference by seed |", "|" + "---|" * 6]
    found = read_records(CELLS)
    for corpus, steps in dict.fromkeys((cell["corpus"], cell["of_steps"]) for cell in found):
        mine = [cell for cell in found if (cell["corpus"], cell["of_steps"]) == (corpus, steps)]
        for at, length in enumerate(mine[0]["lengths"]):
            both = compared([cell["cosine"][at] for cell in mine], [cell["fallen"][at] for cell in mine])
            rows.append(f"| {corpus} | {length} | {len(mine)} | {both} |")
        soup = compared([cell["trunk"] for cell in mine], [cell["soup"] for cell in mine])
        rows.append(f"| {corpus}: the trunk's end, and its soup | | {len(mine)} | {soup} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
