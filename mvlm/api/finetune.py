"""From a pretrained run to one that answers questions, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from mvlm.api.corpus import find_shards
from mvlm.api.recipe import choose_tuning
from mvlm.api.results import RECIPE, FineTunedRun, follow_recipe, require_data, write_recipe
from mvlm.checkpoint.description import CONFIG, described_in
from mvlm.checkpoint.layout import CHECKPOINTS, find_checkpoint
from mvlm.config.load import load_stored_config
from mvlm.config.places import as_path
from mvlm.config.schema import Task
from mvlm.config.toml import read_tables
from mvlm.errors import UserError
from mvlm.runtime.arguments import path_of
from mvlm.runtime.wording import counted

Tuned = Literal["vqa", "nlvr2", "entailment"]
TASKS = get_args(Tuned)


def finetune(
    model: str | os.PathLike[str],
    task: Tuned,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
) -> FineTunedRun:
    """Fine-tune a run: `mvlm.finetune("runs/mine", "vqa", "shards/vqa", out="runs/vqa")`.

    Every choice is printed, and recorded in the run folder's `recipe.toml`. Called again, it resumes.

    Args:
        model: a run folder (its newest checkpoint) or one of its checkpoints.
        task: "vqa" (questions), "nlvr2" (statements about two images) or "entailment" (statements about one).
        data: shards for the task, as made by `data_tools shard`; a split named `eval` is held out.
        out: the run folder.
        settings: keys of the run TOML to change, such as `{"train.epochs": 3}`.

    Raises:
        UserError: the task is unknown, the data are for another task, a setting is wrong, or training failed.
    """
    if task not in TASKS:
        raise UserError(f"mvlm.finetune has no task {task!r}: choose one of {', '.join(TASKS)}.")
    start, run = path_of("model", model), path_of("out", out)
    corpus = find_shards(Path(as_path(data)), Task(task).corpus)
    if not corpus:
        raise UserError(f"No shards at {data}: make them from {task}'s files with `mvlm-data shard`.")
    if not (run / RECIPE).exists():
        checkpoint = find_checkpoint(start).absolute()
        config = load_stored_config(described_in(checkpoint) / CONFIG)
        chosen = choose_tuning(
            (config.data, config.model, config.optim),
            checkpoint,
            task,
            corpus,
            run.absolute(),
            torch.cuda.device_count(),
        )
        write_recipe(run, chosen, f"Chosen by mvlm.finetune for {counted(corpus.images, 'row')}.")
    else:
        _require_beginning(run, start, task)
        require_data(run, corpus.train)
    follow_recipe(run, settings, task, corpus.eval)
    return FineTunedRun(run)


def _require_beginning(run: Path, model: Path, task: Tuned) -> None:
    """Raises `UserError` if a run is fine-tuned for another task, or began with another run's weights."""
    recipe = read_tables(run / RECIPE, "recipe")
    if "task" not in recipe:
        raise UserError(f"{run} is a run of mvlm.train and not fine-tuned for {task}: give another `out`.")
    known, begun = recipe["task"]["name"], Path(recipe["checkpoint"]["init"])
    if known != task:
        raise UserError(f"{run} is fine-tuned for {known} and not for {task}: give another `out`.")
    try:
        asked = find_checkpoint(model)
    except UserError:  # it has been removed since
        return
    if _beginning(begun) != _beginning(asked):
        raise UserError(f"{run} began with {begun} and not with {model}: give another `out`.")


def _beginning(checkpoint: Path) -> Path:
    """What identifies a beginning: the checkpoints folder of a run, for any of its checkpoints; a soup is itself."""
    home = checkpoint.resolve().parent
    return home if home.name == CHECKPOINTS else checkpoint.resolve()
