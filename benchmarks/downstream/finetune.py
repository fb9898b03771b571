"""Pretraining, then fine-tuning, on worlds with known answers: what is reached on held-out scenes, and what by chance.

python -m benchmarks.downstream.finetune [--seeds 0 1 2] [--folder DIR]

Every seed pretrains on captions, fine-tunes from there for questions, and from questions for pairs and for entailment;
then all are trained once more without pretraining. A stopped run is resumed, and measurements are kept;
results/finetune.json is rewritten from all of them. README.md says what each number means.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.downstream.one_sided import STATED, by_text_alone, with_one_side_exchanged
from benchmarks.downstream.statements import by_kind_of_statement
from mvlm.cli.output import write_whole

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "finetune.json"
WORLDS = {"vqa": "vqa", "nlvr2": "pairs", "entailment": "entailment"}
WORDS = "red,green,blue,yellow,purple,orange,circle,square,triangle,star"
HELD_OUT = 3  # pairs of colour and shape that training never shows
# Up to half of them show what is held out. With only 18,000 pairs left to train on, statements are learned by heart.
ROWS = {"caption": 20_000, "vqa": 20_000, "pairs": 160_000, "entailment": 40_000, "foils": 4_000}
PRETRAINING = 600  # steps
# A model that counts only 96 % of things right, as after 1,200 updates on questions, learns to compare numbers later.
STEPS = {"vqa": 2400, "nlvr2": 3000, "entailment": 1200}
# Straight from captions, statements about pairs stay at a coin toss's loss for 1,600 steps, and entailment for 1,200 at
# that of a model that knows only what is covered: an answer that depends on both sides at once has no first step.
AFTER = {"nlvr2": "vqa", "entailment": "vqa"}
# A feature that says nothing yet, such as a number when numbers are compared, is noise to the head, and small batches
# train it away.
RECIPE = {"vqa": (5e-4, 64), "nlvr2": (1e-3, 256), "entailment": (5e-4, 64)}  # rate and batch
STARTS = ("pretrained", "scratch")
PARTS = ("eval", "novel")
PRETRAINED = [f"{task}_{part}" for task in ("retrieval", "reconstruction") for part in PARTS] + ["foils_eval"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/downstream")
    args = parser.parse_args()
    worlds = {world: make_world(args.folder / "worlds", world) for world in ROWS}
    with_texts = [worlds[world] for world in ("caption", *WORLDS.values())]
    tokenizer = make_tokenizer(args.folder / "worlds/tokenizer.json", with_texts)
    chance = {
        task: STATED[task] | {"by_text_seen": by_text_alone(task, worlds[world])} for task, world in WORLDS.items()
    }
    for start in STARTS:
        for seed in args.seeds:
            base = args.folder / f"pretrained_{seed}"
            train(base, worlds["caption"], seed, PRETRAINING, f"data.tokenizer={tokenizer}")
            measure_pretrained(base, worlds["caption"], worlds["foils"])
            for task, world in WORLDS.items():
                run = tuned(args, task, start, seed)
                rate, batch = RECIPE[task]
                words = [f"task.name={task}", f"optim.lr={rate}", f"optim.encoder_lr={rate}"]
                words += [f"train.global_batch={batch}", f"data.tokenizer={tokenizer}"]
                if start == "pretrained" or task in AFTER:
                    before = tuned(args, AFTER[task], start, seed) if task in AFTER else base
                    words.append(f"checkpoint.init={before}")
                train(run, worlds[world], seed, STEPS[task], *words)
                measure_tuned(run, task, worlds[world])
                write(args.folder, chance)


def tuned(args: argparse.Namespace, task: str, start: str, seed: int) -> Path:
    """The folder of a fine-tuning run."""
    return args.folder / f"{task}_{start}_{seed}"


def make_world(folder: Path, task: str) -> Path:
    """The shards of a world, made once; all worlds hold out the same pairs of colour and shape."""
    out = folder / f"{task}_{ROWS[task]}"
    if not out.exists():
        words = ["--count", str(ROWS[task]), "--seed", "1", "--holdout-pairs", str(HELD_OUT)]
        call("data_tools", "synth", "--task", task, *words, "--split", "train=0.9,eval=0.1", "--out", str(out))
    return out


def make_tokenizer(path: Path, worlds: list[Path]) -> Path:
    """Train it on all tasks' words: one of captions alone would spell statements in letters, four times as many."""
    if not path.exists():
        call("data_tools", "tokenizer", *(str(world / "train") for world in worlds), "--out", str(path))
    return path


def train(run: Path, world: Path, seed: int, steps: int, *words: str) -> None:
    given = {"run.dir": run, "run.seed": seed, "data.train": world / "train", "train.steps": steps, "data.eval": []}
    overrides = [*(f"{key}={value}" for key, value in given.items()), "checkpoint.every=500", *words]
    call("mvlm", "train", "examples/scenes.toml", "--deepspeed_config", "ds_configs/cpu.json", *overrides)


def measure_pretrained(run: Path, world: Path, foils: Path) -> None:
    """Measure what is missing, on seen and unseen pairs of colour and shape, and on foils."""
    for part in PARTS:
        evaluate(run, "retrieval", world / part, part)
        evaluate(run, "reconstruction", world / part, part, "--words", WORDS)
    evaluate(run, "foils", foils / "eval", "eval")


def measure_tuned(run: Path, task: str, world: Path) -> None:
    for part in PARTS:
        predictions, kinds = run / f"{task}_{part}.predictions", run / f"statements_{part}.json"
        evaluate(run, task, world / part, part, "--predictions", str(predictions))
        if task == "nlvr2" and not kinds.exists():
            write_whole(kinds, json.dumps(by_kind_of_statement(predictions, world / part)), "--folder")
    exchanged = run / "exchanged.json"
    if not exchanged.exists():
        write_whole(exchanged, json.dumps(with_one_side_exchanged(run, task, world / "eval")), "--folder")


def evaluate(run: Path, task: str, data: Path, part: str, *options: str) -> None:
    file = run / f"{task}_{part}.json"
    if not file.exists():
        words = ["--checkpoint", str(run), "--data", str(data), *options, "--json", str(file)]
        call("mvlm", "evaluate", task, *words)


def write(folder: Path, chance: dict[str, dict[str, float]]) -> None:
    """Write what all finished runs in the folder have reached: mean, minimum and maximum over their seeds."""
    tasks: dict[str, Any] = {}
    for task in WORLDS:
        tasks[task] = {"chance": chance[task]}
        for start in STARTS:
            done = sorted(path.parent for path in folder.glob(f"{task}_{start}_*/exchanged.json"))
            if done:
                names = (task, "statements") if task == "nlvr2" else (task,)
                parts = [f"{name}_{part}" for name in names for part in PARTS]
                seeds = [int(run.name.rpartition("_")[2]) for run in done]
                tasks[task][start] = {"seeds": seeds} | of_runs(done, [*parts, "exchanged"])
    pretrained = of_runs(sorted(path.parent for path in folder.glob("pretrained_*/foils_eval.json")), PRETRAINED)
    settings = {"rows": ROWS, "pretraining": PRETRAINING, "steps": STEPS}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**settings, "pretrained": pretrained, "tasks": tasks}, indent=1) + "\n")


def of_runs(runs: list[Path], names: list[str]) -> dict[str, Any]:
    return {name: spread([read(run / f"{name}.json") for run in runs]) for name in names}


def spread(found: list[Any]) -> Any:
    """The same nested numbers, each as mean, minimum and maximum over the seeds; whatever is no number is left out."""
    first = found[0]
    if isinstance(first, dict):
        inner = {name: spread([one[name] for one in found]) for name in first if all(name in one for one in found)}
        return {name: value for name, value in inner.items() if value is not None}
    if isinstance(first, bool) or not all(isinstance(one, (int, float)) for one in found):
        return None
    return {"mean": statistics.mean(found), "min": min(found), "max": max(found)}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def call(*words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    main()
