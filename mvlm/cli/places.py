"""Checks of the paths given to a command, before imports that take seconds."""

from __future__ import annotations

from collections.abc import Iterable
from glob import iglob
from pathlib import Path

from mvlm.checkpoint.layout import INDEX
from mvlm.config.places import expanded
from mvlm.errors import Mistakes, UserError, no_shards


def require_shards(places: Iterable[str]) -> None:
    """Raises `UserError` naming each folder or pattern of tars that does not exist; URLs are checked when opened."""
    mistakes = Mistakes()
    for place in expanded(places):
        if "://" not in place and not Path(place).exists() and not any(iglob(place)):
            mistakes.add(str(no_shards(place)))
    mistakes.settle()


def require_folder(*places: str | Path, why: str) -> None:
    """Raises `UserError` for the first folder that does not exist; `why` says what to give."""
    for place in places:
        if not Path(place).is_dir():
            raise UserError(f"No folder at {place}: {why}")


def require_no_checkpoint(*folders: Path) -> None:
    """Raises `UserError` for the first that is a checkpoint: it describes its run, but has none of the run's logs."""
    for folder in folders:
        if (folder / INDEX).is_file():
            raise UserError(f"{folder} is a checkpoint, which has no log: give the folder of its run.")


def require_index(folder: Path) -> None:
    """Raises `UserError` if the index does not exist."""
    if not folder.is_dir():
        raise UserError(f"No index at {folder}: make one with `mvlm index SHARDS --checkpoint RUN --out {folder}`.")


def require_files(places: Iterable[str | Path]) -> None:
    """Raises `UserError` for the first picture file or folder of pictures that does not exist."""
    for place in places:
        if not Path(place).exists():
            raise UserError(f"No picture at {place}: give image files, or a folder of them.")
