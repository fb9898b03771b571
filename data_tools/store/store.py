"""Where a corpus is written; nothing looks whole before it is.

A store keeps, until the end, what a restart needs: the plan (what is being made of what) and one state a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvlm.runtime.log import logger

STATE = ".state"
PLAN = f"{STATE}/plan.json"
OURS = re.compile(
    r"([A-Za-z0-9_-]+/)?(\d{6}\.(arrow|index)|manifest\.json|quarantine\.jsonl|yield\.(json|txt)|source\.json)"
    rf"|{re.escape(STATE)}/\d{{6}}\.state|.*\.partial"
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
    """The place of one corpus (or one a split) in the making. Files are made in the local folder `work`."""

    def __init__(self, out: str, work: Path) -> None:
        self._out, self.work = out, work
        self._count = 0  # of the states

    def begin(self, plan: dict[str, Any] | None) -> list[bytes]:
        """The states of an earlier run of the same plan, oldest first; those of another plan are removed."""
        if plan is None or self.plan() != plan:
            if self.states():
                logger("data_tools").warning(
                    f"The unfinished run of {self._out} was of another source, other options or another version: "
                    "starting afresh."
                )
            self.restart()
        self._write(PLAN, json.dumps(plan).encode())
        states = self.states()
        self._count = len(states)
        for name in self._state_names()[self._count :]:  # a damaged one, and those after it
            self._delete(name)
        return states

    def plan(self) -> Any:
        """What is being made here; None where that is not known."""
        try:
            return json.loads(self._read(PLAN) or b"null")
        except ValueError:
            return None

    def states(self) -> list[bytes]:
        """Those that are whole, up to the first that is not."""
        states = []
        for content in map(self._read, self._state_names()):
            if content is None or hashlib.sha256(content[32:]).digest() != content[:32]:
                break
            states.append(unsealed(content)[0])
        return states

    def seen(self, number: int) -> bytes:
        """What the index of duplicates had new in that state."""
        content = self._read(_state(number))
        assert content is not None
        return unsealed(content)[1]

    def add_state(self, state: bytes, seen: bytes) -> None:
        """Make a state last, with what the index of duplicates has new; what it speaks of was kept before."""
        self._write(_state(self._count), sealed(state, seen))
        self._count += 1

    def restart(self) -> None:
        """Forget all states and kept files."""
        for name in filter(OURS.fullmatch, self._names()):
            self._delete(name)
        self._count = 0

    def discard(self) -> None:
        """Leave nothing of this run."""
        self.restart()
        self._delete(PLAN)

    def _state_names(self) -> list[str]:
        return sorted(name for name in self._names() if name.endswith(".state"))

    @abstractmethod
    def keep(self, name: str) -> None:
        """Make the finished file `name` of `work` last."""

    @abstractmethod
    def has(self, name: str, size: int) -> bool:
        """Whether a kept file is there in full."""

    @abstractmethod
    def reject(self, name: str) -> str:
        """Make the file `name` of `work` last beside the corpus that is not to be; return its name there."""

    @abstractmethod
    def finish(self, names: list[str]) -> None:
        """Make the files `names` last, in this order, and the corpus appear."""

    @abstractmethod
    def _names(self) -> Iterable[str]: ...

    @abstractmethod
    def _read(self, name: str) -> bytes | None: ...

    @abstractmethod
    def _write(self, name: str, content: bytes) -> None: ...

    @abstractmethod
    def _delete(self, name: str) -> None: ...


def sealed(state: bytes, seen: bytes) -> bytes:
    """A state as it is stored: a hash of the rest, the length of its JSON, that, and what was seen since the last."""
    rest = len(state).to_bytes(8, "little") + state + seen
    return hashlib.sha256(rest).digest() + rest


def unsealed(content: bytes) -> tuple[bytes, bytes]:
    """The JSON and what follows."""
    end = 40 + int.from_bytes(content[32:40], "little")
    return content[40:end], content[end:]


def _state(number: int) -> str:
    return f"{STATE}/{number:06d}.state"
