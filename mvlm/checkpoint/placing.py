"""How a checkpoint that comes from elsewhere takes its place in a run folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mvlm.checkpoint.layout import INDEX, LATEST, Entry
from mvlm.errors import cannot_write
from mvlm.runtime import dist
from mvlm.runtime.storage import write_durably

UNFINISHED = ".partial-0"  # there is no attempt 0, so the first attempt that saves deletes it


def on_each(run: Path, concerned: bool, action: Callable[[], str | None]) -> str | None:
    """Run `action` on this rank if it is concerned; every rank gets what any returned, or the error that any met."""

    def act() -> str | None:
        try:
            return action() if concerned else None
        except OSError as error:
            raise cannot_write(f"The run folder {run}", error, "free some room or set run.dir") from None

    return next(filter(None, dist.on_all(act)), None)


def make_ready(folder: Path, unfinished: Path) -> None:
    """Keep what is there, the node's own files or those of an interrupted fetch, so that it is not fetched again."""
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not unfinished.exists():
        os.rename(folder, unfinished)
    unfinished.mkdir(exist_ok=True)


def finish(folder: Path, unfinished: Path, entries: list[Entry], index: bytes) -> None:
    named = {unfinished / entry.file for entry in entries}
    for stranger in {path for path in unfinished.rglob("*") if path.is_file()} - named:
        stranger.unlink()
    write_durably(unfinished / INDEX, index)
    if folder.exists():
        shutil.rmtree(folder)
    os.rename(unfinished, folder)


def name_latest(folder: Path) -> None:
    """Make a checkpoint the run folder's latest; its best, which may be older, is fetched without becoming that."""
    write_durably(folder.parent / LATEST, folder.name)


def set_damaged_aside(folder: Path) -> Path:
    """Rename a step folder that is not whole, in place of one that was set aside before; returns the new path."""
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)
