"""What a run has left behind, from Python."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvlm.__main__ import command_line
from mvlm.api.launch import launch_training
from mvlm.api.model import TrainedModel, load
from mvlm.api.recipe import Recipe
from mvlm.api.tasks import FineTunedModel, load_finetuned
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.load import load_config
from mvlm.config.toml import as_toml
from mvlm.errors import UserError
from mvlm.report.facts import read_facts, read_json

RECIPE, DEEPSPEED, EVALUATION, REPORT = "recipe.toml", "zero1.json", "evaluation.json", "report.html"


@dataclass(frozen=True)
class RunFolder:
    """A run that has ended.

    Attributes:
        folder: everything that it has written.
    """

    folder: Path

    @property
    def report(self) -> Path:
        """One HTML page: curves, numbers, examples."""
        return self.folder / REPORT

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What the held-out rows have measured, as `mvlm evaluate --json` writes it; None without any."""
        return read_json(self.folder / EVALUATION)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, a dict of numbers for each logged step. Raises `UserError` where the run has not begun."""
        return list(read_facts(self.folder).metrics.values())

    def _repr_html_(self) -> str:
        return f'<a href="{self.report}">{self.report}</a>'


class TrainedRun(RunFolder):
    """A pretrained one."""

    def load(self, device: str | torch.device | None = None) -> TrainedModel:
        """The trained model; raises `UserError` where there is no checkpoint yet."""
        return load(self.folder, device)


class FineTunedRun(RunFolder):
    """One fine-tuned for questions or statements."""

    def load(self, device: str | torch.device | None = None) -> FineTunedModel:
        """The fine-tuned model; raises `UserError` where there is no checkpoint yet."""
        return load_finetuned(self.folder, device)


def write_recipe(folder: Path, recipe: Recipe, heading: str) -> None:
    """Print what was chosen, and write it where the run will be. Raises `UserError` where that cannot be."""
    print(f"{recipe.base}: {recipe.reason}", *recipe.choices, sep="\n  ", flush=True)
    deepspeed = json.dumps({"zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}})
    for name, text in ((DEEPSPEED, deepspeed), (RECIPE, recipe.text(heading))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder / name} cannot be written ({error}): give another `out`.") from None


def follow_recipe(folder: Path, settings: Mapping[str, Any] | None, task: str, held_out: Sequence[str]) -> None:
    """Train by the recipe of a run folder, evaluate what it is for, and write the report.

    Raises:
        UserError: a setting is wrong, or a part has failed.
        KeyboardInterrupt: Ctrl-C, once training has saved.
    """
    recipe = str(folder / RECIPE)
    overrides = [f"{key}={as_toml(value)}" for key, value in (settings or {}).items()]
    load_config(recipe, overrides)  # a mistake is met here, before a launcher starts
    try:
        launch_training(recipe, str(folder / DEEPSPEED), overrides, max(1, torch.cuda.device_count()))
    except KeyboardInterrupt:
        print(_where_it_stopped(folder), flush=True)
        raise
    if held_out:
        kept = ["--json", str(folder / EVALUATION)]
        _command("evaluate", task, "--checkpoint", str(folder), "--data", *held_out, *kept)
    _command("report", str(folder))


def _where_it_stopped(folder: Path) -> str:
    try:
        saved = find_checkpoint(folder)
    except UserError:
        return f"Stopped before anything was saved in {folder}: the same call begins again."
    return f"Stopped; {saved} is saved, and the same call goes on from there."


def _command(*words: str) -> None:
    """A command of `mvlm` in this process; raises its `UserError`."""
    args = command_line(words).parse_args(words)
    args.run(args)
