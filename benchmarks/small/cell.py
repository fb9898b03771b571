"""One cell: an arm trained on a corpus with a seed for so many CPU seconds, and its results."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.claim.cost import seconds_a_step
from benchmarks.kept import code_version
from benchmarks.small.arms import ARMS, RANDOM, pretrained
from benchmarks.small.corpora import ROOT, SEARCHED
from mvlm.api.dictionary import make_dictionary
from mvlm.cli.train import evaluator
from mvlm.config.load import given_keys, load_config, read_stages
from mvlm.training.fit.run import train

TOML, JSON = ROOT / "mvlm/configs/tiny.toml", str(ROOT / "ds_configs/cpu.json")
WARM_UP = 0.05  # of the updates
EVALUATIONS = 4  # on the rows to choose on, in a run; the best checkpoint is kept, as early stopping would
COMMON = (
    "data.epoch=images",
    "data.workers=0",
    "data.shuffle=global",
    "checkpoint.every=0",
    "eval.rerank=16",
    f"eval.limit={SEARCHED}",
    "eval.select=eval/mean_recall",
    "log.every=20",
    "log.tensorboard=false",
    "log.pictures=0",
)


def measure(shards: Path, arm: str, seed: int, seconds: float, home: Path) -> dict[str, Any]:
    """Train it for about so many CPU seconds, given its measured cost per step; evaluations are not included.

    Returns:
        `cost_s` of a step by stage, `steps`, `cpu_s` of the whole run, evaluations and start included, and R@10 of 200
        rows in both directions: with the last weights, and with those that were best on the rows to choose on.
    """
    run = home / "runs" / f"{shards.name}-{arm}-{seconds:g}-{seed}"
    costs = [_cost(shards, arm, number, home) for number in range(len(ARMS[arm].stages))]
    shares = [share for share, _ in ARMS[arm].stages]
    steps = [max(1, round(seconds * share / cost)) for share, cost in zip(shares, costs, strict=True)]
    began = time.process_time()
    _train(run, shards, arm, seed, steps, home)
    spent = time.process_time() - began
    found = {place: _search(run, place, shards) for place in ("last", "best")}
    measured = {"cost_s": costs, "steps": steps, "cpu_s": round(spent, 1), "commit": code_version()}
    return measured | {"chosen": _chosen(run)} | found


def _cost(shards: Path, arm: str, stage: int, home: Path) -> float:
    """CPU seconds per step of a stage, kept beside the runs."""
    kept = home / "costs" / f"{shards.name}-{arm}-{stage}.json"
    if not kept.exists():
        words = [*_settings(shards, arm, 0, home), *ARMS[arm].stages[stage][1]]
        kept.write_text(json.dumps(fmean(seconds_a_step(TOML, Path(JSON), words, kept.with_suffix("")))))
    return float(json.loads(kept.read_text()))


def _train(run: Path, shards: Path, arm: str, seed: int, steps: Sequence[int], home: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)  # left by a cell that was interrupted
    toml = run.with_name(f"{run.name}.toml")
    toml.parent.mkdir(parents=True, exist_ok=True)
    stages = ARMS[arm].stages
    several = len(stages) > 1
    words = [*_settings(shards, arm, seed, home), f"run.dir={run}"]
    words += [f"optim.warmup_steps={round(WARM_UP * sum(steps))}", f"eval.every={max(1, sum(steps) // EVALUATIONS)}"]
    tables = TOML.read_text(encoding="utf-8")
    for number, ((_, settings), length) in enumerate(zip(stages, steps, strict=True)):
        if several:
            tables += "\n[[stage]]\n" + "schedule = 'continue'\n" * (number > 0) + f"train.steps = {length}\n"
            tables += "".join(f"{setting}\n" for setting in settings)
        else:
            words += [*settings, f"train.steps={length}"]
    toml.write_text(tables, encoding="utf-8")
    config, given = load_config(toml, words), given_keys(toml, words)
    _finished(train(config, (JSON, str(toml)), given, evaluator, None, read_stages(toml)))
    gc.collect()


def _finished(code: int) -> None:
    """Raise `SystemExit` if a run was stopped: the same command begins its cell again."""
    if code:
        raise SystemExit(code)


def _settings(shards: Path, arm: str, seed: int, home: Path) -> list[str]:
    encoders = pretrained(home) if ARMS[arm].pretrained else RANDOM
    if ARMS[arm].dictionary:
        encoders += (f"model.vision_weights={_dictionary(shards, home)}",)
    data = [f"data.train={shards / 'train'}", f"data.eval={shards / 'choose'}", f"run.seed={seed}"]
    return [*COMMON, *encoders, *ARMS[arm].settings, *data]


def _dictionary(shards: Path, home: Path) -> Path:
    """The dictionary of the training pictures, made once for all cells."""
    kept = home / "dictionaries" / f"{shards.name}.safetensors"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        make_dictionary([str(shards / "train")], kept, load_config(TOML).model.image_size)
    return kept


def _search(run: Path, place: str, shards: Path) -> dict[str, float]:
    """R@10 of the rows to test on, in both directions, by ITC and, if there is ITM, re-ranked.

    It runs in its own process, since the command closes the process group at its end, and DeepSpeed does not accept a
    second one for the next cell.
    """
    kept = run / f"{place}.json"
    checkpoint = str(run if place == "last" else run / "best")
    words = ["evaluate", "retrieval", "--checkpoint", checkpoint, "--data", str(shards / "test"), "--json", str(kept)]
    subprocess.run([sys.executable, "-m", "mvlm", *words, "--limit", str(SEARCHED)], cwd=ROOT, check=True)
    found = json.loads(kept.read_text())
    kinds = [kind for kind in ("itc", "reranked") if found["image_to_text"].get(kind)]
    return {f"{way}_{kind}": found[way][kind]["r10"] for way in ("image_to_text", "text_to_image") for kind in kinds}


def _chosen(run: Path) -> dict[str, float]:
    """The mean recall of the last evaluation on the rows to choose on, and the best one's with its step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "eval/mean_recall" in line]
    best = max(found, key=lambda line: line["eval/mean_recall"])
    return {"last": found[-1]["eval/mean_recall"], "best": best["eval/mean_recall"], "best_step": best["step"]}
