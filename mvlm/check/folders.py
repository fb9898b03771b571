"""Folders to examine, whether or not they exist yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Folders:
    """What the user asked the doctor to look at."""

    shards: tuple[str, ...] = ()
    run: str = ""  # "" = runs, in the current folder

    @property
    def disk(self) -> Path:
        """A folder on the disk that a run would write to."""
        return nearest(Path(self.run or "runs"))


def nearest(folder: Path) -> Path:
    """The folder or, if it does not exist yet, its nearest ancestor that does."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
