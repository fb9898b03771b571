"""Where a corpus is written; nothing looks complete before it is.

Until the end, a store keeps what a restart needs: the plan (what is being made from what), and for each finished part
a file that says what it has made.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.log import logger

from ..part import PartManifest

STATE = ".state"
PLAN = f"{STATE}/plan.json"
PART = ".part"
OURS = re.compile(
    r"([A-Za-z0-9_-]+/)?(\d{6,}(-\d{3,})?\.(arrow|index|[a-z]+\.parquet)|manifest\.json|quarantine\.jsonl|yield\.(json|txt)"
    rf"|source\.json)|{re.escape(STATE)}/\d{{6,}}\.(part|marks|dropped)|.*\.partial"
)
"""What `restart` may remove."""


class Finished(Exception):
    """The same plan was carried out before, by a run that was killed while it cleaned up."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    def read(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8")


class Store(ABC):
    """The place of a corpus (or of one per split) in the making. Files are made in the local folder `work`.

    If it is `shared`, other processes may be making other parts at the same time.
    """

    def __init__(self, out: str, work: Path, shared: bool = False) -> None:
        self._out, self.work, self.shared = out, work, shared

    def begin(self, plan: dict[str, Any] | None) -> list[PartManifest]:
        """Remove the parts of another plan, and return those that an earlier run of the same plan has finished.

        A part with a file that is missing or has another length is not finished.

        Raises:
            UserError: the store is shared, and holds parts of another plan.
        """
        if self.shared and self.plan() not in (None, plan):
            raise UserError(
                f"Parts of {self._out} were made from another source, with other options or by another version: remove "
                "them, or finish them with the command that began them."
            )
        if not self.shared and (plan is None or self.plan() != plan):
            if any(name.endswith(PART) for name in self.sizes()):
                logger("mvlm-data").warning(
                    f"The unfinished run of {self._out} had another source, other options or another version: "
                    "starting afresh."
                )
            self.restart()
        if self.plan() != plan or plan is None:
            self.write(PLAN, json.dumps(plan).encode())
        return self.parts()

    def plan(self) -> Any:
        """What is being made here; None if that is not known."""
        try:
            return json.loads(self.read(PLAN) or b"null")
        except ValueError:
            return None

    def parts(self) -> list[PartManifest]:
        """The finished parts in order."""
        there = self.sizes()
        found = filter(None, (_unsealed(self.read(name)) for name in sorted(there) if name.endswith(PART)))
        return [part for part in found if part.files.items() <= there.items()]

    def part(self, number: int) -> PartManifest | None:
        """A finished part; None while it is unfinished."""
        return _unsealed(self.read(part_file(number, PART)))

    def finish_part(self, made: PartManifest) -> None:
        """Record that a part is finished, after all of its files have been kept."""
        content = made.to_bytes()
        self.write(part_file(made.number, PART), hashlib.sha256(content).digest() + content)

    def reopen_part(self, number: int) -> None:
        """Record that a part is unfinished."""
        self.delete(part_file(number, PART))

    def restart(self) -> None:
        """Forget all that was made."""
        for name in filter(OURS.fullmatch, self.sizes()):
            self.delete(name)

    def discard(self) -> None:
        """Leave nothing of this run."""
        self.restart()
        self.delete(PLAN)

    @abstractmethod
    def for_task(self) -> AbstractContextManager[Store]:
        """The store as a task uses it, in any process: with a folder `work` to make files in."""

    @abstractmethod
    def keep(self, name: str) -> None:
        """Make the finished file `name` in `work` durable."""

    @abstractmethod
    def local(self, name: str) -> Path:
        """A kept file on this machine."""

    @abstractmethod
    def reject(self, name: str) -> str:
        """Keep the file `name` in `work` beside the corpus that will not be made; return its name there."""

    @abstractmethod
    def finish(self, names: list[str]) -> None:
        """Make the files `names` durable, in this order, and the corpus appear."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file that is kept, by its name."""

    @abstractmethod
    def read(self, name: str) -> bytes | None: ...

    @abstractmethod
    def write(self, name: str, content: bytes) -> None: ...

    @abstractmethod
    def delete(self, name: str) -> None: ...


def part_file(number: int, ending: str) -> str:
    """A file of a part, beside its shards."""
    return f"{STATE}/{number:06d}{ending}"


def _unsealed(content: bytes | None) -> PartManifest | None:
    """The manifest of a finished part; None if its file is missing or damaged."""
    if content is None or hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    return PartManifest.from_bytes(content[32:])
