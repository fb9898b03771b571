"""A run's results, from Python."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvlm.api.load import load
from mvlm.api.model import TrainedModel
from mvlm.api.recipe import Recipe
from mvlm.api.tasks import FineTunedModel, load_finetuned
from mvlm.checkpoint.layout import BEST, best_checkpoint, find_checkpoint
from mvlm.cli.output import write_json, write_whole
from mvlm.config.load import load_config
from mvlm.config.places import as_paths
from mvlm.config.toml import as_toml, read_tables
from mvlm.errors import UserError
from mvlm.evaluate.labelled import TITLES
from mvlm.evaluate.measured import evaluate_checkpoint
from mvlm.evaluate.task import TASKS
from mvlm.export.written import Format, export_run
from mvlm.report.facts import read_facts, read_json
from mvlm.report.written import report_on
from mvlm.runtime.arguments import path_of
from mvlm.runtime.commands import run_command
from mvlm.runtime.launch import free_port

RECIPE, DEEPSPEED, EVALUATION, REPORT = "recipe.toml", "zero1.json", "evaluation.json", "report.html"


@dataclass(frozen=True)
class RunFolder:
    """A run that has ended.

    Attributes:
        folder: contains everything the run has written.
    """

    folder: Path

    @property
    def report(self) -> Path:
        """One HTML page: curves, numbers, examples."""
        return self.folder / REPORT

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation on the held-out rows, as `mvlm evaluate --json` writes it; None if nothing was held out."""
        return read_json(self.folder / EVALUATION)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, a dict of numbers for each logged step. Raises `UserError` if the run has not begun."""
        return list(read_facts(self.folder).metrics.values())

    def evaluate(
        self, task: str, data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **settings: Any
    ) -> dict[str, Any]:
        """Measure the newest checkpoint as `mvlm evaluate TASK` does, on other data than those held out.

        Args:
            task: "retrieval", "reconstruction", "classification", "probe", "foils"; "vqa", "nlvr2", "entailment".
            data: folders of shards, tars, or, for some tasks, folders with one folder of pictures per class.
            settings: the command's options by name, such as `limit=1000` or `rerank=32`.

        Raises:
            UserError: there is no such task or setting, no checkpoint yet, or the data cannot be used.
        """
        return evaluate_checkpoint(task, self.folder, as_paths(data), **settings)

    def write_report(self) -> Path:
        """Write the report again, as `mvlm report` does; returns its path. Raises `UserError` if it cannot."""
        write_whole(self.report, report_on([read_facts(self.folder)]), "out")
        return self.report

    def export(self, out: str | os.PathLike[str], form: Format = "hf") -> Path:
        """Write the newest checkpoint's model for people without mvlm, as `mvlm export` does; returns the folder.

        Args:
            out: a new folder.
            form: "hf", for AutoModel and AutoProcessor; "onnx" or "torch", graphs that compute vectors for retrieval.

        Raises:
            UserError: there is no checkpoint yet, packages are missing, or the folder cannot be written.
        """
        folder = path_of("out", out)
        export_run(self.folder, folder, form)
        return folder

    def _repr_html_(self) -> str:
        return f'<a href="{self.report}">{self.report}</a>'


class TrainedRun(RunFolder):
    """A pretraining run that has ended."""

    def load(self, device: str | torch.device | None = None) -> TrainedModel:
        """The trained model; raises `UserError` if there is no checkpoint yet."""
        return load(self.folder, device)


class FineTunedRun(RunFolder):
    """A run that was fine-tuned for questions or statements."""

    def load(self, device: str | torch.device | None = None) -> FineTunedModel:
        """The fine-tuned model; raises `UserError` if there is no checkpoint yet."""
        return load_finetuned(self.folder, device)


def write_recipe(folder: Path, recipe: Recipe, heading: str) -> None:
    """Print a recipe and its choices, and write it to the run folder. Raises `UserError` if it cannot be written."""
    print(f"{recipe.base}: {recipe.reason}", *recipe.choices, sep="\n  ", flush=True)
    deepspeed = json.dumps({"zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}})
    for name, text in ((DEEPSPEED, deepspeed), (RECIPE, recipe.text(heading))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{folder / name} cannot be written ({error}): give another `out`.") from None


def require_data(folder: Path, shards: Sequence[str]) -> None:
    """Raises `UserError` if the recipe in a run folder trains on other shards than these."""
    known = _places(folder)["data.train"]
    if not {os.path.realpath(each) for each in known} & {os.path.realpath(each) for each in shards}:
        raise UserError(
            f"{folder} trains on {', '.join(known)} and not on {', '.join(shards)}: give another `out`, or the data "
            "that it began with."
        )


def follow_recipe(folder: Path, settings: Mapping[str, Any] | None, task: str, held_out: Sequence[str]) -> None:
    """Train with the recipe in a run folder, evaluate on its task, and write the report.

    Raises:
        UserError: a setting is wrong, or training, evaluation or the report failed.
        KeyboardInterrupt: on Ctrl-C, after training has saved.
    """
    if not isinstance(settings or {}, Mapping):
        raise UserError(f"`settings` is a {type(settings).__name__}: give a dict, such as {{'train.steps': 300}}.")
    if settings and "run.dir" in settings:
        raise UserError(f"`settings` has run.dir, which is `out`, {folder}: leave it out, or give another `out`.")
    recipe = str(folder / RECIPE)
    overrides = [f"{key}={as_toml(value)}" for key, value in {**_places(folder), **(settings or {})}.items()]
    load_config(recipe, overrides)  # finds mistakes before a launcher starts
    try:
        launch_training(recipe, str(folder / DEEPSPEED), overrides, max(1, torch.cuda.device_count()))
        _conclude(folder, task, held_out)
    except KeyboardInterrupt:
        print(_where_it_stopped(folder), flush=True)
        raise


def _places(folder: Path) -> dict[str, Any]:
    """Where the run and its shards are now: the folder may have been moved or copied since its recipe was written."""
    recipe = read_tables(folder / RECIPE, "recipe")
    begun, data = recipe.get("run", {}).get("dir", str(folder)), recipe.get("data", {})

    def now(place: str) -> str:
        inside = Path(place).is_relative_to(begun)
        return str(folder.absolute() / Path(place).relative_to(begun)) if inside else place

    shards = {f"data.{part}": [now(place) for place in as_paths(data.get(part, []))] for part in ("train", "eval")}
    return {"run.dir": str(folder), **shards}


def _conclude(folder: Path, task: str, held_out: Sequence[str]) -> None:
    if held_out:
        result = evaluate_checkpoint(task, folder, held_out)
        result.pop("predictions", None)
        print(TASKS[task].text(result), end="", flush=True)
        write_json(folder / EVALUATION, result)
    write_whole(folder / REPORT, report_on([read_facts(folder)]), "out")
    print(f"Written to {folder / REPORT}", flush=True)
    best = best_checkpoint(folder)
    if best and best != find_checkpoint(folder):
        loads = f"mvlm.load{'_finetuned' if task in TITLES else ''}({str(folder / BEST)!r})"
        print(f"An earlier checkpoint evaluated best: {best}; {loads} loads it.", flush=True)


def _where_it_stopped(folder: Path) -> str:
    try:
        saved = find_checkpoint(folder)
    except UserError:
        return f"Stopped before anything was saved in {folder}: the same call begins again."
    return f"Stopped; {saved} is saved, and the same call resumes from there."


def launch_training(recipe: str, deepspeed: str, overrides: Sequence[str], ranks: int) -> None:
    """Run `mvlm train` on this machine, by DeepSpeed's launcher for several ranks; it saves if this process is
    interrupted. Raises as `run_command`."""
    launcher = [sys.executable, "-m", "mvlm"]
    if ranks > 1:
        runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--num_accelerators", str(ranks)]
        launcher = [*runner, "--master_port", str(free_port()), "--module", "mvlm"]
    run_command([*launcher, "train", recipe, "--deepspeed_config", deepspeed, *overrides], stop=signal.SIGTERM)
