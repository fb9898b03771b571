"""Going on from a checkpoint, with any number of ranks and any ZeRO stage. Its layout: mvlm/model/weights.py.

Written by mvlm/train/saver.py. Where the run's latest checkpoint turns out to be damaged, the newest older one
that is whole takes its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from mvlm import dist
from mvlm.config import Checkpoint
from mvlm.errors import UserError
from mvlm.model.foreign import is_foreign
from mvlm.model.weights import (
    CHECKPOINTS,
    EMA,
    LATEST,
    MOMENTS,
    UNREADABLE,
    WEIGHTS,
    find_checkpoint,
    has_moments,
    is_moments,
    open_tensors,
    read_index,
)
from mvlm.train.engine import Engine
from mvlm.train.partitions import MOMENTS as KEYS
from mvlm.train.state import TrainState

FOLDERS = "step_????????"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Start:
    """Where training begins."""

    checkpoint: Path | None  # None: from scratch
    resumes: bool  # goes on exactly; otherwise the weights alone are taken
    own: bool  # the checkpoint lies in the run folder itself


def starting_point(run: Path, config: Checkpoint) -> Start:
    """Decide where training begins; all ranks must call, and are told the same.

    1. The latest whole checkpoint in the run folder, so that a command that is started again goes on. 2.
    `checkpoint.resume`, when given. 3. The weights alone of `checkpoint.init`. 4. Scratch, or encoders of others.

    Raises:
        UserError: there is no such checkpoint, or none of the run folder is whole.
    """
    start = as_rank_0(lambda: _given_start(run, config))
    return start or Start(newest_whole(run), resumes=True, own=True)


def _given_start(run: Path, config: Checkpoint) -> Start | None:
    """By all rules but the first: None where that one holds."""
    if (run / CHECKPOINTS / LATEST).is_file():
        return None
    if config.resume:
        return Start(find_checkpoint(config.resume), resumes=True, own=False)
    ours = config.init and not is_foreign(config.init)
    return Start(find_checkpoint(config.init) if ours else None, resumes=False, own=False)


def make_latest(checkpoint: Path) -> None:
    """Point the run's `latest` at one of its own checkpoints, whatever lies beyond it; all ranks must call."""
    as_rank_0(partial(_point_latest, checkpoint))


def _point_latest(checkpoint: Path) -> None:
    try:
        write_durably(checkpoint.parent / LATEST, checkpoint.name)
    except OSError as error:
        raise UserError(f"{checkpoint.parent} cannot be written ({error}): free some room or set run.dir.") from None


def newest_whole(run: Path) -> Path:
    """The run's latest checkpoint; where it is damaged, the newest older whole one, which becomes the latest.

    The damaged ones are then renamed to `step_N.damaged`, and one sentence says so. All ranks must call.

    Raises:
        UserError: none is whole; nothing has been renamed.
    """
    latest = as_rank_0(lambda: _latest(run))
    while reason := find_damage(latest):
        newer = as_rank_0(lambda: _latest(run))
        if newer == latest:
            break
        latest = newer  # another attempt lives, and has deleted what it no longer keeps
    if not reason:
        return latest
    damaged = [latest]
    older = as_rank_0(lambda: [path for path in latest.parent.glob(FOLDERS) if path.name < latest.name])
    for candidate in sorted(older, reverse=True):
        if find_damage(candidate):
            damaged.append(candidate)
        elif _can_go_on(candidate):
            as_rank_0(partial(_set_aside, damaged, reason, candidate))
            return candidate
    raise _refusal(latest, reason)


def restore_start(engine: Engine, run: Path, start: Start) -> tuple[TrainState, Path]:
    """Fill the engine from where training begins, or from what is the latest by now; all ranks must call.

    An attempt that still lives goes on and deletes old checkpoints while this one starts up.

    Returns:
        The state, and the checkpoint that it is from.

    Raises:
        UserError: as `restore` does.
    """
    checkpoint = start.checkpoint
    assert checkpoint
    while True:
        try:
            return restore(engine, checkpoint), checkpoint
        except UserError:
            newest = newest_whole(run) if start.own else checkpoint
            if newest == checkpoint:
                raise
            checkpoint = newest


def is_gone(checkpoint: Path) -> bool:
    """As rank 0 sees it; all ranks must call."""
    return as_rank_0(lambda: not checkpoint.is_dir())


def restore(engine: Engine, checkpoint: Path) -> TrainState:
    """Fill the engine, new or live, from a checkpoint of any layout; all ranks must call.

    One parameter's tensors are in memory at a time.

    Raises:
        UserError: the checkpoint is damaged, lacks moments that the run needs, or is another model's.
    """
    if reason := find_damage(checkpoint):
        raise _refusal(checkpoint, reason)
    state = read_state(checkpoint)
    if not _can_go_on(checkpoint):
        raise UserError(
            f"{checkpoint} holds no optimizer moments, so the run cannot go on exactly: "
            "start a new run with checkpoint.init to take its weights alone."
        )
    parameters = dict(engine.parameters())
    with ExitStack() as stack:
        weights = stack.enter_context(open_tensors(checkpoint, WEIGHTS))
        moments = stack.enter_context(open_tensors(checkpoint, MOMENTS)) if state.updates else {}
        averages = stack.enter_context(open_tensors(checkpoint, EMA)) if engine.averages else {}
        for name, file in weights.items():
            shape, parameter = tuple(file.get_slice(name).get_shape()), parameters.get(name)
            if parameter is None or shape != tuple(getattr(parameter, "ds_shape", parameter.shape)):
                raise UserError(f"{checkpoint}: {name} of shape {shape} does not fit this model; use its TOML.")
        if lacking := parameters.keys() - weights.keys():
            raise UserError(f"{checkpoint} lacks {min(lacking)}: it is another model's; use its TOML.")
        engine.prepare_state(state.updates)
        for name, parameter in parameters.items():
            whole = {"weight": weights[name].get_tensor(name)}
            if parameter.requires_grad:
                titles = {key: f"{key}/{name}" for key in KEYS}
                whole |= {key: moments[title].get_tensor(title) for key, title in titles.items() if title in moments}
                if engine.averages:  # which begin here where the checkpoint has none
                    whole[EMA] = averages[name].get_tensor(name) if name in averages else whole["weight"]
            engine.write(parameter, whole)
    if state.loss_scale is not None:
        engine.set_loss_scale_state(state.loss_scale)
    return state


def read_state(checkpoint: Path) -> TrainState:
    """Raises one of UNREADABLE where state.json is damaged."""
    return TrainState.from_json(json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, if anything; the ranks share the reading, and all must call.

    Moments that were deleted altogether are no damage.
    """
    return next(filter(None, dist.gather_objects(_find_damage_in_share(checkpoint))), None)


def _find_damage_in_share(checkpoint: Path) -> str | None:
    if not checkpoint.is_dir():
        return "it is missing"
    try:
        read_state(checkpoint)
        files = [entry for entry in read_index(checkpoint) if has_moments(checkpoint) or not is_moments(entry)]
        for entry in files[dist.rank() :: dist.world()]:
            with open(checkpoint / entry.file, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    return f"{entry.file} has another SHA-256 than index.json says"
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    return None


def _can_go_on(checkpoint: Path) -> bool:
    """Whether an undamaged checkpoint has the moments that its optimiser needs."""
    return read_state(checkpoint).updates == 0 or has_moments(checkpoint)


def _refusal(checkpoint: Path, reason: str) -> UserError:
    return UserError(
        f"{checkpoint} is damaged ({reason}): go on from another checkpoint, by checkpoint.resume in a new run.dir."
    )


def _latest(run: Path) -> Path:
    """The folder that `latest` names, be it whole or not."""
    latest = run / CHECKPOINTS / LATEST
    name = latest.read_text(encoding="utf-8", errors="replace").strip()
    return latest.with_name(name) if re.fullmatch(r"step_\d{8}", name) else find_checkpoint(run)


def _set_aside(damaged: list[Path], reason: str, used: Path) -> None:
    try:
        write_durably(used.parent / LATEST, used.name)
        kept = []
        for folder in filter(Path.is_dir, damaged):
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
            kept.append(aside.name)
        sync_folder(used.parent)
    except OSError as error:
        raise UserError(
            f"{damaged[0]} is damaged ({reason}) and cannot be renamed ({error}): free some room, or set "
            f"checkpoint.resume={used}."
        ) from None
    kept_as = f", and what is damaged is kept as {' and '.join(kept)}" if kept else ""
    print(
        f"mvlm: {damaged[0]} is damaged ({reason}): the run goes on from {used.name}{kept_as}.",
        file=sys.stderr,
        flush=True,
    )


def write_durably(path: Path, text: str) -> None:
    """Replace a file's content in one rename, synced."""
    beside = path.with_name(path.name + ".partial")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk know the names in a folder, which syncing its files does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_rank_0(ask: Callable[[], Found]) -> Found:
    """What rank 0 finds, or the mistake it meets, on every rank."""
    answer: Found | UserError | None = None
    if dist.rank() == 0:
        try:
            answer = ask()
        except UserError as error:
            answer = error
    answer = dist.broadcast_object(answer)
    if isinstance(answer, UserError):
        raise answer
    return answer
