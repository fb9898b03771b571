"""Where a corpus is written; nothing looks whole before it is.

A store keeps, until the end, what a restart needs: the plan (what is being made of what), and of each finished part a
file that says what it has made.
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
    """This very plan was carried out before, and the run was killed while it cleaned up."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    def read(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8")


class Store(ABC):
    """The place of one corpus (or one a split) in the making. Files are made in the local folder `work`.

    Where it is `shared`, other processes are making other parts of the same at this moment.
    """

    def __init__(self, out: str, work: Path, shared: bool = False) -> None:
        self._out, self.work, self.shared = out, work, shared

    def begin(self, plan: dict[str, Any] | None) -> list[PartManifest]:
        """The parts that an earlier run of the same plan has finished; those of another plan are removed.

        A part some file of which is missing or of another length is not finished.

        Raises:
            UserError: it is shared, and those of another plan are there.
        """
        if self.shared and self.plan() not in (None, plan):
            raise UserError(
                f"Parts of {self._out} were made of another source, with other options or by another version: remove "
                "them, or finish them with the command that began them."
            )
        if not self.shared and (plan is None or self.plan() != plan):
            if any(name.endswith(PART) for name in self.sizes()):
                logger("data_tools").warning(
                    f"The unfinished run of {self._out} was of another source, other options or another version: "
                    "starting afresh."
                )
            self.restart()
        if self.plan() != plan or plan is None:
            self.write(PLAN, json.dumps(plan).encode())
        return self.parts()

    def plan(self) -> Any:
        """What is being made here; None where that is not known."""
        try:
            return json.loads(self.read(PLAN) or b"null")
        except ValueError:
            return None

    def parts(self) -> list[PartManifest]:
        """The finished ones in order."""
        there = self.sizes()
        found = filter(None, (_unsealed(self.read(name)) for name in sorted(there) if name.endswith(PART)))
        return [part for part in found if part.files.items() <= there.items()]

    def part(self, number: int) -> PartManifest | None:
        """A finished one; None while it is not finished."""
        return _unsealed(self.read(part_file(number, PART)))

    def finish_part(self, made: PartManifest) -> None:
        """Have it known that a part is finished, all of whose files were kept before."""
        content = made.to_bytes()
        self.write(part_file(made.number, PART), hashlib.sha256(content).digest() + content)

    def reopen_part(self, number: int) -> None:
        """Have a part be unfinished."""
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
        """The store as a task uses it, in whatever process: with a folder `work` to make files in."""

    @abstractmethod
    def keep(self, name: str) -> None:
        """Make the finished file `name` of `work` last."""

    @abstractmethod
    def local(self, name: str) -> Path:
        """A kept file on this machine."""

    @abstractmethod
    def reject(self, name: str) -> str:
        """Make the file `name` of `work` last beside the corpus that is not to be; return its name there."""

    @abstractmethod
    def finish(self, names: list[str]) -> None:
        """Make the files `names` last, in this order, and the corpus appear."""

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
    """What a whole file of a finished part says."""
    if content is None or hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    return PartManifest.from_bytes(content[32:])
