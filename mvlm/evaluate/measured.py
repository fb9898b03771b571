"""A checkpoint evaluated by one of the tasks: what `mvlm evaluate` and Python's `run.evaluate` do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from numbers import Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from mvlm.config.places import require_each_once
from mvlm.config.schema import Eval
from mvlm.errors import UserError
from mvlm.evaluate.labelled import TITLES
from mvlm.evaluate.retrieval import SearchSettings
from mvlm.evaluate.settings import Settings
from mvlm.evaluate.task import TASKS
from mvlm.pretrained.runs import Loaded, load_run, load_task_run
from mvlm.runtime import dist
from mvlm.runtime.arguments import whole

TAKES = {
    "retrieval": ("rerank", "equal_captions", "where", "memory_gb"),
    "reconstruction": ("words", "pictures", "where"),
    "classification": ("templates", "memory_gb"),
    "probe": ("train",),
    "foils": ("memory_gb",),
    **dict.fromkeys(TITLES, ("where",)),
}
"""The options of each task besides `limit` and `batch`; a task that an extension adds has all of them."""

SEARCH = ("batch", "rerank", "memory_gb", "equal_captions")
LEAST = {"limit": 0, "batch": 1, "rerank": 0}
"""The least that each of these numbers may be."""
TEXTS = {"where": "a condition as text", **dict.fromkeys(("templates", "train", "pictures"), "a path")}
"""What each of these must be."""


def taken_by(task: str) -> tuple[str, ...]:
    """The names of a task's options."""
    own = TAKES[task] if task in TAKES else chain.from_iterable(TAKES.values())
    return tuple(dict.fromkeys(("limit", "batch", *own)))


def evaluate_checkpoint(
    task: str, checkpoint: str | PathLike[str], data: Sequence[str | PathLike[str]], **asked: Any
) -> dict[str, Any]:
    """What the task measures, in a form that JSON can hold; to be called on all ranks at once, with one result on all.

    Args:
        task: one of `TASKS`.
        checkpoint: a run folder, one of its checkpoints, or its `best`.
        data: folders of shards or, for some tasks, of classes of pictures.
        asked: `limit`, `batch` and the task's other options; if missing, as in the run's [eval].

    Raises:
        UserError: the task is unknown, an option is wrong, or the checkpoint or the data cannot be used.
    """
    if task not in TASKS:
        raise UserError(f"There is no task {task!r} to evaluate: choose one of {', '.join(TASKS)}.")
    takes = taken_by(task)
    if unknown := sorted(asked.keys() - set(takes)):
        raise UserError(f"evaluate takes no argument {unknown[0]} for {task}: choose among {', '.join(takes)}.")
    if isinstance(asked.get("words"), str):
        raise UserError(f"{asked['words']!r} cannot be `words`: give a list of words.")
    asked |= {name: whole(name, asked[name], least) for name, least in LEAST.items() if name in asked}
    asked |= {name: _text(name, asked[name]) for name in TEXTS if name in asked}
    memory_gb = asked.get("memory_gb", 1)
    if not isinstance(memory_gb, Real) or not math.isfinite(memory_gb) or memory_gb <= 0:
        raise UserError(f"{memory_gb!r} cannot be `memory_gb`: give a number above 0.")
    require_each_once(places := tuple(fspath(place) for place in data))
    device = dist.device()
    loaded: Loaded[Any] = (
        load_task_run(Path(checkpoint), task, device) if task in TITLES else load_run(Path(checkpoint), device)
    )
    settings = _settings(places, asked, loaded.eval)
    result = TASKS[task].run(loaded, settings, device) | {"step": loaded.step, "data": list(places)}
    result["weights_fingerprint"] = loaded.fingerprint
    kind = "rows" if "rows" in result else "images"
    told = [result.get("protocol", "")]  # an extension's result may have none
    if settings.limit and result.get(kind) == settings.limit:
        told.append(f"At most {settings.limit:,} {kind} are used: a limit of 0 takes all.")
    if settings.where:
        told.append(f"Only the rows where {settings.where} are used.")
        result["where"] = settings.where
    result["protocol"] = " ".join(filter(None, told))
    if loaded.ema:
        result["weights"] = f"averaged, train.ema = {loaded.ema}"
    return result


def _text(name: str, value: object) -> str:
    if not isinstance(value, (str, PathLike)):
        raise UserError(f"{value!r} cannot be `{name}`: give {TEXTS[name]}.")
    return fspath(value)


def _settings(data: tuple[str, ...], asked: dict[str, Any], defaults: Eval) -> Settings:
    """What was asked for, and the run's [eval] for the rest."""
    search = SearchSettings(
        batch=asked.get("batch", defaults.batch),
        rerank=asked.get("rerank", defaults.rerank),
        memory_gb=asked.get("memory_gb", defaults.memory_gb),
        equal_captions=asked.get("equal_captions", False),
    )
    own = {name: asked[name] for name in asked.keys() - {"limit", *SEARCH}}
    return Settings(data, asked.get("limit", defaults.limit), search, **own)
