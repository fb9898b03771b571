"""A checkpoint evaluated by one of the tasks: what `mvlm evaluate` and Python's `run.evaluate` do."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from mvlm.config.schema import Eval
from mvlm.errors import UserError
from mvlm.evaluate.labelled import TITLES
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.evaluate.settings import Settings
from mvlm.evaluate.task import TASKS
from mvlm.pretrained.runs import Loaded, load_run, load_task_run
from mvlm.runtime import dist
from mvlm.runtime.arguments import whole

SEARCH, OWN = ("batch", "rerank", "memory_gb", "equal_captions"), ("words", "templates", "train", "pictures", "where")
LEAST = {"limit": 0, "batch": 1, "rerank": 0}
"""What each of these numbers may be."""

UNSELECTED = ("classification", "probe", "foils")
"""Tasks that read folders of pictures, or rows that go in pairs."""


def evaluate_checkpoint(
    task: str, checkpoint: str | PathLike[str], data: Sequence[str | PathLike[str]], **asked: Any
) -> dict[str, Any]:
    """What the task measures, in a form that JSON can hold; to be called on all ranks at once, with the same result.

    Args:
        task: of `TASKS`.
        checkpoint: a run folder, one of its checkpoints, or its `best`.
        data: folders of shards or, for some tasks, of classes of pictures.
        asked: `limit`, and those of `SEARCH` and `OWN` that the task takes; if missing, as in the run's [eval].

    Raises:
        UserError: the task is unknown, something asked cannot be, or the checkpoint or the data cannot be used.
    """
    if task not in TASKS:
        raise UserError(f"There is no task {task!r} to evaluate: choose one of {', '.join(TASKS)}.")
    if unknown := asked.keys() - {"limit", *SEARCH, *OWN}:
        raise UserError(
            f"evaluate takes no argument {sorted(unknown)[0]}: choose among limit, {', '.join((*SEARCH, *OWN))}."
        )
    if asked.get("where") and task in UNSELECTED:
        raise UserError(f"The rows of {task} cannot be selected by a condition: leave `where` out.")
    if isinstance(asked.get("words"), str):
        raise UserError(f"{asked['words']!r} cannot be `words`, which are several: give a list of words.")
    asked |= {name: whole(name, asked[name], least) for name, least in LEAST.items() if name in asked}
    device = dist.device()
    loaded: Loaded[Any] = (
        load_task_run(Path(checkpoint), task, device) if task in TITLES else load_run(Path(checkpoint), device)
    )
    places = tuple(fspath(place) for place in data)
    settings = _settings(places, asked, loaded.eval)
    result = TASKS[task].run(loaded, settings, device) | {"step": loaded.step, "data": list(places)}
    if settings.where:
        told = f"{result['protocol']} Only the rows where {settings.where} are used."
        result |= {"where": settings.where, "protocol": told}
    if loaded.ema:
        result["weights"] = f"averaged, train.ema = {loaded.ema}"
    return result


def _settings(data: tuple[str, ...], asked: dict[str, Any], defaults: Eval) -> Settings:
    """What was asked for, and the run's [eval] for the rest."""
    search = SearchSettings(
        batch=asked.get("batch", defaults.batch),
        rerank=asked.get("rerank", defaults.rerank),
        memory_gb=asked.get("memory_gb", defaults.memory_gb),
        equal_captions=asked.get("equal_captions", False),
    )
    own = {name: asked[name] for name in OWN if name in asked}
    return Settings(data, asked.get("limit", defaults.limit), search, **own)
