"""From a folder of captioned pictures to a trained model, by one call."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvlm.__main__ import command_line
from mvlm.api.corpus import prepare
from mvlm.api.launch import launch_training
from mvlm.api.model import TrainedModel, load
from mvlm.api.recipe import choose
from mvlm.config.load import load_config
from mvlm.config.toml import as_toml
from mvlm.errors import UserError
from mvlm.report.facts import read_facts, read_json

SHARDS, RECIPE, DEEPSPEED, RETRIEVAL, REPORT = "shards", "recipe.toml", "zero1.json", "retrieval.json", "report.html"


@dataclass(frozen=True)
class TrainedRun:
    """A trained run.

    Attributes:
        folder: everything that it has written.
    """

    folder: Path

    @property
    def report(self) -> Path:
        """One HTML page: curves, numbers, examples."""
        return self.folder / REPORT

    @property
    def retrieval(self) -> dict[str, Any] | None:
        """What the held-out pictures have measured, as `mvlm evaluate retrieval --json` writes it; None without any."""
        return read_json(self.folder / RETRIEVAL)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, a dict of numbers for each logged step. Raises `UserError` where the run has not begun."""
        return list(read_facts(self.folder).metrics.values())

    def load(self, device: str | torch.device | None = None) -> TrainedModel:
        """The trained model; raises `UserError` where there is no checkpoint yet."""
        return load(self.folder, device)

    def _repr_html_(self) -> str:
        return f'<a href="{self.report}">{self.report}</a>'


def train(
    data: str | os.PathLike[str], out: str | os.PathLike[str], settings: Mapping[str, Any] | None = None
) -> TrainedRun:
    """Train a model on captioned pictures: `mvlm.train("pictures/", out="runs/mine")`.

    Shards the pictures with a tenth of them held out, chooses a recipe by their number and this machine, trains on all
    of its GPUs or on the CPU, evaluates, and writes a report. Every choice is printed, and stands in the run folder's
    `recipe.toml`. Called again, it resumes.

    Args:
        data: a folder with `captions.jsonl` or with a text file beside each picture, a tar of either, a CSV or TSV
            table, parquet, a data set saved by Hugging Face's datasets, or shards.
        out: the run folder.
        settings: keys of the run TOML that are to be different, such as `{"train.steps": 300, "optim.lr": 1e-3}`.

    Raises:
        UserError: something is wrong with the pictures or the settings, or training has failed; says what to do.
    """
    run = Path(out)
    corpus = prepare(os.fspath(data), run / SHARDS)
    recipe, deepspeed = run / RECIPE, run / DEEPSPEED
    gpus = torch.cuda.device_count()
    if not recipe.exists():
        chosen = choose(corpus.images, corpus.train, corpus.eval, run, gpus)
        print(f"{chosen.base}: {chosen.reason}", *chosen.choices, sep="\n  ", flush=True)
        _write(recipe, chosen.text(f"Chosen by mvlm.train for {corpus.images:,} images."))
        _write(deepspeed, json.dumps({"zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}}))
    overrides = [f"{key}={as_toml(value)}" for key, value in (settings or {}).items()]
    load_config(recipe, overrides)  # a mistake is met here, before a launcher starts
    launch_training(str(recipe), str(deepspeed), overrides, max(1, gpus))
    if corpus.eval:
        data_of = ["--data", *corpus.eval]
        _command("evaluate", "retrieval", "--checkpoint", str(run), *data_of, "--json", str(run / RETRIEVAL))
    _command("report", str(run))
    return TrainedRun(run)


def _command(*words: str) -> None:
    """A command of `mvlm` in this process; raises its `UserError`."""
    args = command_line(words).parse_args(words)
    args.run(args)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): give mvlm.train another `out`.") from None
