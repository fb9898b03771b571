"""Deletes checkpoints, but only those that a chain of attempts wrote itself and has superseded.

What somebody copied into the folder, what was there when a run began, and what has no known writer stays.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from mvlm.checkpoint.layout import LATEST, STEP, Writer, best_checkpoint, read_name, read_writer, step_folders, step_of
from mvlm.config.schema import Checkpoint
from mvlm.runtime.log import rank_log

UNFINISHED = re.compile(rf"{STEP.pattern}\.(?:partial|deleted)-(?P<attempt>\d+)")

Saved = TypeVar("Saved", bound=tuple[int, int])
"""A checkpoint as (attempt that saved it, step)."""


def lineage(saved: Iterable[Saved]) -> list[Saved]:
    """Newest first, those that lead to the newest: without those that a later attempt discarded by going back."""
    found: list[Saved] = []
    for each in sorted(saved, reverse=True):
        if not found or each[1] < found[-1][1]:
            found.append(each)
    return found


def to_keep(saved: Iterable[Saved], config: Checkpoint) -> list[Saved]:
    """Of one chain's checkpoints, the last `keep` that lead to the newest and the multiples of `keep_every`."""
    found = lineage(saved)
    multiples = [each for each in found if config.keep_every and each[1] % config.keep_every == 0]
    return [*found[: config.keep], *multiples]


def prune(run: Path, newest: Path, config: Checkpoint, writer: Writer, held: Path | None) -> None:
    """Delete what the writer's chain has saved up to `newest` and need not keep, except the run's best and `held`.

    After the run has gone back, the checkpoints beyond `newest` stay until the chain has passed them.
    """
    saved: dict[tuple[int, int], Path] = {}
    for folder in step_folders(run):
        by, step = read_writer(folder), step_of(folder)
        if by and by.chain == writer.chain and step <= step_of(newest):
            saved[by.attempt, step] = folder
    kept = [*map(saved.get, to_keep(saved, config)), best_checkpoint(run), held]
    for folder in saved.values():
        if folder not in kept:
            with contextlib.suppress(OSError):  # it is tried again next time
                _delete(folder, writer)


def make_way(folder: Path, writer: Writer) -> Path | None:
    """Free a step's place: what the writer's chain saved there is renamed, anything else is set aside.

    Returns:
        The chain's own folder under its new name, to be deleted; None if there is none.

    Raises:
        OSError: it cannot be renamed.
    """
    if not os.path.lexists(folder):
        return None
    by = read_writer(folder)
    if by and by.chain == writer.chain:
        return _rename(folder, f"deleted-{writer.attempt}")
    aside = _rename(folder, f"aside-{writer.attempt}")
    rank_log.warning(f"{folder} does not belong to this run: it is kept as {aside.name}.")
    return None


def put_back(home: Path) -> None:
    """Undo `make_way` if a kill came before the checkpoint that was saved again, the latest, had taken its place."""
    with contextlib.suppress(OSError, ValueError):  # then the run goes back to an older one
        name = read_name(home / LATEST)
        if not os.path.lexists(home / name):
            for replaced in home.glob(f"{name}.deleted-*"):
                os.rename(replaced, home / name)


def delete_unfinished(home: Path, attempt: int) -> None:
    """Delete what earlier attempts have left half written or half deleted."""
    for path in home.glob("step_*"):
        found = UNFINISHED.fullmatch(path.name)
        if found and int(found["attempt"]) < attempt:
            shutil.rmtree(path, ignore_errors=True)


def _delete(folder: Path, writer: Writer) -> None:
    """Rename it first, so that a kill cannot leave half a checkpoint under its own name."""
    shutil.rmtree(_rename(folder, f"deleted-{writer.attempt}"))


def _rename(folder: Path, ending: str) -> Path:
    renamed = folder.with_name(f"{folder.name}.{ending}")
    os.rename(folder, renamed)
    return renamed
