"""Contrast alone for a third of the time, then all four objectives; compared with all four from the start.

python -m benchmarks.stages.itc_first [--corpora emoji scenes world] [--seeds 0 1 2 3 4] [--steps 450] [--minutes 20]

Both get the same CPU time, by the cost of a step, which is measured first: contrast is cheaper, so its stage makes more
updates. One cosine covers both stages. results/itc_first.jsonl gets a line for each run; one that is there is not run
again, so the command resumes. After `--minutes` it stops at the end of the current run. `--steps` are those of the arm
with all four objectives; the other arm gets the time that these take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.claim.corpora import prepare
from benchmarks.claim.grid import EMOJI, SCENES
from benchmarks.kept import add_record, code_version, read_records
from benchmarks.small.cell import JSON, TOML
from data_tools.__main__ import main as data_tools
from mvlm.cli.train import evaluator
from mvlm.config.load import given_keys, load_config, read_stages
from mvlm.runtime import dist
from mvlm.training.fit.run import train

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CELLS = HERE / "results/itc_first.jsonl"
ROUNDS, MEASURED = 5, 30  # rounds in which a cost is measured, and updates in each
SETTINGS = (
    "model.vision_args={patch_size=8, embed_dim=64, depth=2, num_heads=4}",
    "model.text_args={hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256, "
    "max_position_embeddings=64, initializer_range=0.08}",
    "model.image_size=32",
    "model.cross_depth=1",
    "model.contrastive_width=64",
    "objectives.image_mask_block=1",
    "data.vocabulary=2000",
    "data.workers=0",
    "data.shuffle=global",
    "optim.warmup_steps=30",
    "train.global_batch=64",
    "checkpoint.every=0",
    "log.every=50",
    "log.tensorboard=false",
    "log.pictures=0",
    "eval.rerank=0",
)
CONTRAST = "objectives.image = 0\nobjectives.text = 0\nobjectives.itm = 0\n"
ARMS = ("all four", "ITC first")
CORPORA = ("emoji", "scenes", "world")
SHOWN = ("eval/mean_recall", "eval/image_to_text_r10", "eval/text_to_image_r10")


def asked(
    doc: str | None, folder: str, corpora: Sequence[str], argv: Sequence[str] | None, steps: int = 450, seeds: int = 5
) -> argparse.Namespace:
    """Parse the arguments of a benchmark of this folder, whose runs go into `folder`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", choices=corpora, default=corpora)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)))
    parser.add_argument("--folder", type=Path, default=ROOT / folder)
    parser.add_argument("--minutes", type=float, default=1e9)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = asked(__doc__, "runs/itc_first", CORPORA, argv)
    dist.init()
    until = time.monotonic() + 60 * args.minutes
    data = corpora(args.folder)
    for seed, name, arm in product(args.seeds, args.corpora, ARMS):
        if time.monotonic() > until:
            return 75
        wanted = {"corpus": name, "arm": arm, "seed": seed, "of_steps": args.steps}
        if not any(wanted.items() <= cell.items() for cell in read_records(CELLS)):
            add_record(CELLS, wanted | measure(data[name], args.folder / f"{name}-{args.steps}", arm, seed, args.steps))
            print(table(), flush=True)
    print(table())
    return 0


def corpora(home: Path) -> dict[str, tuple[list[str], str]]:
    """By name: shards to train on and to evaluate on."""
    if not (home / "synthetic").exists():
        words = ["synth", "--task", "caption", "--count", "1500", "--seed", "7", "--split", "train=0.8,eval=0.2"]
        assert data_tools([*words, "--out", str(home / "synthetic")]) == 0
    world, emoji = prepare(SCENES, "", home / "claim"), prepare(EMOJI, "", home / "claim")
    return {
        "scenes": ([str(home / "synthetic/train")], str(home / "synthetic/eval")),
        "world": (world.train(100), world.eval()),
        "emoji": (emoji.train(100), emoji.eval()),
    }


def measure(folders: tuple[list[str], str], home: Path, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one arm; returns what its last evaluation found."""
    home.mkdir(exist_ok=True)

    def all_four(run: Path, steps: int) -> float:
        return trained(run, folders, "", 0, f"train.steps={steps}", evaluate=False)

    def contrast(run: Path, steps: int) -> float:
        return trained(run, folders, f"[[stage]]\n{CONTRAST}train.steps = {steps}\n", 0, evaluate=False)

    ratio = relative_cost(home, (all_four, contrast))
    rest = f"[[stage]]\nname = 'all four'\nschedule = 'continue'\ntrain.steps = {steps - steps // 3}\n"
    first = f"[[stage]]\nname = 'contrast'\n{CONTRAST}train.steps = {round(steps // 3 * ratio)}\n"
    run = home / f"{arm.replace(' ', '_')}-{seed}"
    stages, words = (first + rest, ()) if arm == "ITC first" else ("", (f"train.steps={steps}",))
    seconds = trained(run, folders, stages, seed, *words)
    return {"ratio": ratio, "cpu_s": seconds, "commit": code_version(), **last_evaluation(run)}


def last_evaluation(run: Path) -> dict[str, Any]:
    """The step of a run's last evaluation, and its numbers."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in reversed(lines) if SHOWN[0] in line)
    return {key: value for key, value in found.items() if key == "step" or key.startswith("eval/")}


Arm = Callable[[Path, int], float]
"""(run folder, number of updates) -> CPU seconds of such a run, including its start."""


def relative_cost(home: Path, arms: tuple[Arm, Arm]) -> float:
    """How many updates of the second arm take the CPU time of one of the first.

    It is the median of rounds in which both take turns, since other work on a machine slows down what shares its cores.
    """
    file = home / "ratios.json"
    if not file.exists():
        ratios = []
        for number in range(ROUNDS):
            runs = [home / f"cost-{number}-{which}" for which in range(len(arms))]
            few = [arm(run.with_name(f"{run.name}-few"), 1) for arm, run in zip(arms, runs, strict=True)]
            many = [arm(run.with_name(f"{run.name}-many"), 1 + MEASURED) for arm, run in zip(arms, runs, strict=True)]
            ratios.append((many[0] - few[0]) / (many[1] - few[1]))
        file.write_text(json.dumps(ratios))
    return statistics.median(json.loads(file.read_text()))


def trained(
    run: Path, folders: tuple[list[str], str], stages: str, seed: int, *overrides: str, evaluate: bool = True
) -> float:
    """Train a run; returns its CPU seconds, including start and evaluation."""
    toml = run.with_suffix(".toml")
    toml.write_text(TOML.read_text() + "\n" + stages)
    words = [*SETTINGS, f"data.train={json.dumps(folders[0])}", f"run.dir={run}", f"run.seed={seed}", *overrides]
    words += [f"data.eval={folders[1]}", f"eval.every={0 if evaluate else -1}"]
    began = time.process_time()
    config, given = load_config(toml, words), given_keys(toml, words)
    assert train(config, (JSON, str(toml)), given, evaluator, None, read_stages(toml)) == 0
    return time.process_time() - began


def table() -> str:
    """Markdown: by corpus, both arms' means over the seeds that both have, and the differences seed by seed."""
    rows = ["| corpus | updates | seeds | measure | all four | ITC first | difference by seed |", "|" + "---|" * 7]
    found = read_records(CELLS)
    for corpus, steps in dict.fromkeys((cell["corpus"], cell["of_steps"]) for cell in found):
        mine = [cell for cell in found if (cell["corpus"], cell["of_steps"]) == (corpus, steps)]
        by_arm = {arm: {cell["seed"]: cell for cell in mine if cell["arm"] == arm} for arm in ARMS}
        seeds = sorted(by_arm[ARMS[0]].keys() & by_arm[ARMS[1]].keys())
        for measure_ in SHOWN if seeds else ():
            sides = [[by_arm[arm][seed][measure_] for seed in seeds] for arm in ARMS]
            rows.append(f"| {corpus} | {steps} | {len(seeds)} | {measure_} | {compared(*sides)} |")
    return "\n".join(rows)


def compared(before: Sequence[float], after: Sequence[float]) -> str:
    """Cells of a table, in per cent: both means, and the differences seed by seed."""
    differences = ", ".join(f"{100 * (b - a):+.1f}" for a, b in zip(before, after, strict=True))
    return f"{100 * statistics.fmean(before):.1f} | {100 * statistics.fmean(after):.1f} | {differences}"


if __name__ == "__main__":
    sys.exit(main())
