"""Finds the checkpoint to resume from, even if the latest is damaged, or the file `latest` is lost or unusable."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mvlm.checkpoint.integrity import can_resume, find_damage, refusal
from mvlm.checkpoint.layout import CHECKPOINTS, LATEST, candidates
from mvlm.checkpoint.placing import set_damaged_aside
from mvlm.checkpoint.prune import put_back
from mvlm.errors import cannot_write
from mvlm.runtime import dist
from mvlm.runtime.log import log
from mvlm.runtime.storage import sync, write_durably


@dataclass(frozen=True)
class Search:
    """What was found among the checkpoints of a run folder.

    Attributes:
        whole: the one to resume from.
        damaged: newer ones that are not whole, the latest first.
        reason: what is wrong with the first of them.
        problem: what is wrong with the file `latest`, if it names none of them.
    """

    whole: Path
    damaged: tuple[Path, ...] = ()
    reason: str = ""
    problem: str = ""


def newest_whole(run: Path) -> Path:
    """The checkpoint to resume from, which becomes the latest: the one that `latest` names; if that is damaged, the
    newest whole one before it; if `latest` is unusable, the newest whole one.

    Damaged ones are then renamed to `step_N.damaged`, and a warning says so. All ranks must call.

    Raises:
        UserError: none is whole; nothing has been renamed.
    """
    dist.as_rank_0(partial(put_back, run / CHECKPOINTS))
    found = search_whole(run)
    if found.damaged or found.problem:
        dist.as_rank_0(partial(_settle, found))
    return found.whole


def search_whole(run: Path, hashes: bool = True) -> Search:
    """Find the checkpoint to resume from, changing nothing; all ranks must call. Raises as `newest_whole`.

    Args:
        hashes: False compares lengths alone.
    """
    found = dist.as_rank_0(lambda: candidates(run))
    while reason := find_damage(found.first, hashes):
        again = dist.as_rank_0(lambda: candidates(run))
        if again.first == found.first:
            break
        found = again  # another attempt is alive, and has deleted the one that was named
    if not reason and (not found.problem or can_resume(found.first)):
        return Search(found.first, problem=found.problem)
    damaged = [found.first] if reason else []
    for candidate in found.others:
        if find_damage(candidate, hashes):
            damaged.append(candidate)
        elif can_resume(candidate):
            return Search(candidate, tuple(damaged), reason or "", found.problem)
    if reason:
        raise refusal(found.first, reason)
    return Search(found.first, problem=found.problem)


def _settle(found: Search) -> None:
    """Set aside what is damaged, have `latest` name what is used, and say why."""
    damaged, used = found.damaged, found.whole
    why = [found.problem] if found.problem else []
    why += [f"{damaged[0]} is damaged ({found.reason})"] if damaged else []
    try:
        _clear_latest(used.parent / LATEST)
        write_durably(used.parent / LATEST, used.name)
        kept = [set_damaged_aside(folder).name for folder in damaged if folder.is_dir()]
        sync(used.parent)
    except OSError as error:
        remedy = f"free some room, or set checkpoint.resume={used} and another run.dir"
        raise cannot_write(f"{' and '.join(why)}, and {used.parent}", error, remedy) from None
    kept_as = f", and what is damaged is kept as {' and '.join(kept)}" if kept else ""
    newest = ", the newest whole checkpoint" if found.problem else ""
    log.warning(f"{' and '.join(why)}: the run resumes from {used.name}{newest}{kept_as}.")


def _clear_latest(latest: Path) -> None:
    """Move a folder of that name aside: a file could not replace it."""
    if latest.is_dir() and not latest.is_symlink():
        os.rename(latest, latest.with_name(f"{LATEST}.aside-{time.time_ns()}"))


def make_latest(checkpoint: Path) -> None:
    """Point the run's `latest` at one of its own checkpoints, even if there are later ones; all ranks must call."""
    dist.as_rank_0(partial(_point_latest, checkpoint))


def _point_latest(checkpoint: Path) -> None:
    try:
        write_durably(checkpoint.parent / LATEST, checkpoint.name)
    except OSError as error:
        raise cannot_write(str(checkpoint.parent), error, "free some room or set run.dir") from None
