"""Masked patches as mask tokens, or dropped: what each way learns, on a world with known answers.

python benchmarks/drop/compare.py [--seeds 0 1 2] [--steps 800] [--folder runs/drop]

Scenes of coloured shapes (`data_tools synth`), examples/scenes.toml with both kinds of masking and the same seeds. Each
run is kept and resumes where it was stopped; results/compare.json is rewritten when all are finished.
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

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results" / "compare.json"
WORDS = "red,green,blue,yellow,purple,orange,circle,square,triangle,star"
# Sixteen patches per image, four to a cell of the 2 x 2 grid; whole cells are masked.
SIZE = (
    "model.vision_args={patch_size=8, embed_dim=128, depth=2, num_heads=4}",
    "objectives.image_mask_block=2",
    "objectives.image_mask_ratio=0.5",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/drop")
    args = parser.parse_args()
    data = args.folder / "scenes"
    if not data.exists():
        split = ["--count", "8400", "--split", "train=0.95,eval=0.05"]
        call("data_tools", "synth", "--task", "caption", *split, "--out", str(data))
    for seed in args.seeds:
        for masking in ("token", "drop"):
            run = args.folder / f"{masking}_{args.steps}_{seed}"
            train(run, data, masking, args.steps, seed)
            evaluate(run, data)
    results = {masking: summary(args.folder, masking, args.steps, args.seeds) for masking in ("token", "drop")}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"steps": args.steps, "seeds": args.seeds, **results}, indent=1) + "\n")
    print(RESULTS.read_text())


def train(run: Path, data: Path, masking: str, steps: int, seed: int) -> None:
    overrides = {
        "run.dir": run,
        "run.seed": seed,
        "data.train": data / "train",
        "data.eval": data / "eval",
        "objectives.image_masking": masking,
        "train.steps": steps,
        "eval.every": 0,
    }
    words = [*SIZE, *(f"{key}={value}" for key, value in overrides.items())]
    call("mvlm", "train", "examples/scenes.toml", "--deepspeed_config", "ds_configs/cpu.json", *words)


def evaluate(run: Path, data: Path) -> None:
    for task, options in (("retrieval", []), ("reconstruction", ["--words", WORDS])):
        file = run / f"{task}.json"
        if not file.exists():
            words = ["--checkpoint", str(run), "--data", str(data / "eval"), *options, "--json", str(file)]
            call("mvlm", "evaluate", task, *words)


def summary(folder: Path, masking: str, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Each measure's mean, minimum and maximum over the seeds."""
    measured = [measures(folder / f"{masking}_{steps}_{seed}") for seed in seeds]
    values = {name: [one[name] for one in measured] for name in measured[0]}
    return {name: {"mean": statistics.mean(v), "min": min(v), "max": max(v)} for name, v in values.items()}


def measures(run: Path) -> dict[str, float]:
    retrieval, restored = (json.loads((run / f"{task}.json").read_text()) for task in ("retrieval", "reconstruction"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "pixel_l1_right": restored["pixel_l1"]["right"],
        "pixel_l1_none": restored["pixel_l1"]["none"],
        "word_accuracy_right": restored["word_accuracy"]["right"],
        "word_accuracy_none": restored["word_accuracy"]["none"],
        "r1_image_to_text": retrieval["image_to_text"]["itc"]["r1"],
        "r1_image_to_text_reranked": retrieval["image_to_text"]["reranked"]["r1"],
        "r1_text_to_image_reranked": retrieval["text_to_image"]["reranked"]["r1"],
        "pairs_per_s": statistics.median(line["pairs_per_s"] for line in lines if "pairs_per_s" in line),
    }


def call(*words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=environment, check=True)


if __name__ == "__main__":
    main()
