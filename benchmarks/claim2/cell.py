"""A cell of the icons: one training run, measured, as one line of JSON."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.claim.cell import ON_CPU, ROOT, drop_moments, reached, training_seconds
from benchmarks.claim.scores import foils, pack, restoring, retrieval
from benchmarks.claim2.corpus import Icons, by_unit, units
from benchmarks.claim2.plan import ARMS, CONTRAST, CONTRAST_ALONE, CURVE, IconCell, Size
from benchmarks.kept import Record
from mvlm.checkpoint.description import METRICS
from mvlm.cli.train import evaluator
from mvlm.config.load import given_keys, load_config
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.samples.foils import FoilDataset
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.data.shards.mixture import Mixture
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.pretrained.runs import Loaded, load_run
from mvlm.runtime import dist
from mvlm.runtime.jsonl import JsonLinesTail
from mvlm.training.fit.run import train
from mvlm.training.health.signals import StopRequests

WARM_UP = 0.05  # of the updates
SEARCHED = ("concepts", "designers")
"""The samples whose recall is the primary measure; that of `both` is reported beside it."""


@dataclass(frozen=True)
class Run:
    """How a cell will be run.

    Attributes:
        rate: its peak learning rate.
        steps: its updates.
        folder: of the training run.
        begins_with: the run whose weights it begins with; None = random ones.
    """

    cell: IconCell
    size: Size
    icons: Icons
    rate: float
    steps: int
    folder: Path
    begins_with: Path | None

    @property
    def toml(self) -> Path:
        return ROOT / self.size.toml

    @property
    def words(self) -> list[str]:
        """The overrides of the size's TOML."""
        return [
            *settings(self.size, self.icons, self.cell.arm, self.cell.share),
            f"run.dir={self.folder}",
            f"checkpoint.init={self.begins_with or ''}",
            f"run.seed={self.cell.seed}",
            f"optim.lr={self.rate:g}",
            f"optim.encoder_lr={self.rate:g}",
            f"optim.warmup_steps={round(WARM_UP * self.steps)}",
            f"train.steps={self.steps}",
            f"data.eval={self.icons.sample('validation')}",
            f"eval.foils={self.icons.validation_foils}",
            f"eval.limit={self.size.foils}",
            f"eval.every={max(1, self.steps // CURVE)}",
            "eval.rerank=0",
            "eval.share=1000",  # never postponed: every arm is evaluated equally often
        ]


def settings(size: Size, icons: Icons, arm: str, share: int) -> list[str]:
    """Overrides that make an arm's model and data, whatever the seed, rate and length."""
    data = [f"data.train={json.dumps(icons.train(share))}", f"data.tokenizer={icons.tokenizer(share)}"]
    encoder = [f"model.vision_weights={icons.dictionary(share)}"] if size.dictionary else []
    objectives = (*size.contrast, *CONTRAST_ALONE) if arm == CONTRAST else ARMS[arm]
    return [*size.settings, *data, *encoder, *objectives]


def deepspeed(size: Size) -> Path:
    return ROOT / (size.deepspeed if dist.uses_cuda() else ON_CPU)


def train_cell(run: Run, stop: StopRequests) -> int:
    """Train in this process, resuming if the run was stopped; returns the exit code of `mvlm train`."""
    if reached(run.folder) == run.steps:
        return 0
    config, given = load_config(run.toml, run.words), given_keys(run.toml, run.words)
    code = train(config, (str(deepspeed(run.size)), str(run.toml)), given, evaluator, stop)
    if code == 0:
        drop_moments(run.folder)
    return code


def measure_cell(run: Run) -> Record:
    """The record of a trained cell: the score that chooses rates, its curve, its numbers, and each unit's score."""
    began, curve = time.process_time(), learning_curve(run.folder)
    numbers: dict[str, float] = {}
    units_: dict[str, np.ndarray] = {}
    if not run.cell.rate and run.cell.arm != CONTRAST:
        numbers, units_ = measured(run, load_run(run.folder, dist.device()), dist.device())
    return {
        "cell": run.cell.name,
        "arm": run.cell.arm,
        "share": run.cell.share,
        "seed": run.cell.seed,
        "rate": run.rate,
        "steps": run.steps,
        "training_s": round(training_seconds(run.folder), 1),
        "evaluation_cpu_s": round(time.process_time() - began, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": dist.device().type,
        "chosen_by": chosen_by(curve[-1]),
        "curve": curve,
        "numbers": {name: round(float(value), 5) for name, value in numbers.items()},
        "units": {name: pack(score_U) for name, score_U in units_.items()},
    }


def chosen_by(evaluated: dict[str, Any]) -> float:
    """The mean of foils and recall on the validation rows, which selects a learning rate."""
    return round((evaluated["foils"] + evaluated["recall"]) / 2, 5)


def learning_curve(folder: Path) -> list[dict[str, Any]]:
    """For each evaluation on the validation rows: its step, foils right by ITM (by ITC if ITM is not trained), and
    ITC's mean recall."""
    by_step = {
        line["step"]: {
            "step": line["step"],
            "foils": line.get("eval/foils_itm", line["eval/foils_itc"]),
            "recall": line["eval/mean_recall"],
        }
        for line in JsonLinesTail(folder / METRICS).new()
        if "eval/mean_recall" in line
    }
    return [by_step[step] for step in sorted(by_step)]


def measured(run: Run, loaded: Loaded[Any], device: torch.device) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """All numbers, and each unit's mean score on the primary measures."""
    config = load_config(run.toml, run.size.settings)
    search = SearchSettings(config.eval.batch, config.eval.rerank, config.eval.memory_gb, equal_captions=True)
    reading = load_tokenizer(str(loaded.tokenizer_folder)), config.data.text_length, config.model.image_size
    of_foils = FoilDataset(Mixture([run.icons.foils], task="foils"), *reading, run.size.foils)
    numbers, rows = foils(loaded.model, of_foils, search, device)
    scores = {"foils": by_unit(rows["foils"], units(run.icons.foils, len(of_foils))[::2])}
    recalls = []
    for split in (*SEARCHED, "both"):
        held_out = EvalDataset(Mixture([run.icons.sample(split)]), *reading)
        found, rows = retrieval(loaded.model, held_out, search, device)
        numbers |= {f"{name}_{split}": value for name, value in found.items()}
        if split in SEARCHED:
            recalls.append(by_unit(rows["recall"], units(run.icons.sample(split), len(held_out))))
        if split == "concepts" and (loaded.model.objectives.text or loaded.model.objectives.image):
            numbers |= restoring(loaded.model, held_out, (), search.batch, device)[0]
    scores["recall"] = np.concatenate(recalls)
    return numbers | {name: float(score_U.mean()) for name, score_U in scores.items()}, scores
