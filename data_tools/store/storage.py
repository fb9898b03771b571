"""Where a corpus is written: a folder of this machine or any fsspec URL; nothing looks whole before it is.

Both keep, until the end, what a restart needs: the plan (what is being made of what) and one state a checkpoint.
A folder is filled as `.NAME.partial` and renamed; a URL gets each shard when it is finished and its manifests last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from data_tools.store.disk import NO_ROOM, sync_folder, write_bytes, write_text, writing
from mvlm.data.shards.schema import MANIFEST
from mvlm.errors import UserError

__all__ = [
    "Finished",
    "Store",
    "destination",
    "opened",
    "staged",
    "sync_folder",
    "write_bytes",
    "write_text",
    "writing",
]

STATE = ".state"
PLAN = "plan.json"
URL = re.compile(r"[a-z][a-z0-9+.-]*://.+")


class Finished(Exception):
    """This very plan was carried out before, and the run was killed while it cleaned up."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    def read(self, name: str) -> str:
        return (self._folder / name).read_text(encoding="utf-8")


class Store(Protocol):
    """The place of one corpus (or one a split) in the making. Files are made in the local folder `work`."""

    work: Path

    def begin(self, plan: dict[str, Any] | None) -> list[bytes]:
        """The states of an earlier run of the same plan, oldest first; those of another plan are removed."""
        ...

    def keep(self, name: str) -> None:
        """Make the finished file `name` of `work` last."""
        ...

    def has(self, name: str, size: int) -> bool:
        """Whether a kept file is there in full."""
        ...

    def add_state(self, state: bytes, seen: bytes) -> None:
        """Make a state last, with what `Seen` has new; what it speaks of was kept before."""
        ...

    def seen(self, number: int) -> bytes:
        """What `Seen` had new in that state."""
        ...

    def restart(self) -> None:
        """Forget all states and kept files."""
        ...

    def reject(self, name: str) -> str:
        """Make the file `name` of `work` last beside the corpus that is not to be; return its name there."""
        ...

    def discard(self) -> None:
        """Leave nothing of this run."""
        ...

    def finish(self, names: list[str]) -> None:
        """Make the files `names` last, in this order, and the corpus appear."""
        ...


def destination(text: str) -> Path | str:
    """A URL as it is, anything else as a path."""
    return text if URL.fullmatch(text) else Path(text)


@contextmanager
def opened(out: Path | str, resumable: bool) -> Iterator[Store]:
    """Yield the store for `out`, which vanishes if the block fails, unless it is `resumable` and holds a state.

    Raises:
        UserError: `out` holds something already, another process is writing it, or there is no room for it.
    """
    if isinstance(out, str):
        from data_tools.store.remote import remote_store  # which is built on this module

        with remote_store(out) as store:
            yield store
        return
    target = out.resolve()
    partial = target.with_name(f".{target.name}.partial")
    with writing(out):
        _refuse_occupied(out, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial, out)
        folder = _Folder(partial, target)
        try:
            yield folder
        except OSError as error:
            if error.errno in NO_ROOM and resumable and folder.states():
                raise UserError(
                    f"No room to write {out} ({error.strerror}): free space and run the same command again, "
                    "which goes on where this one stopped."
                ) from None
            raise
        finally:
            os.close(lock)
            if not (resumable and folder.states()):
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `out` in one rename if the block ends well and vanishes if not.

    Raises:
        UserError: `out` holds something already, another process is writing it, or there is no room for it.
    """
    with opened(out, resumable=False) as store:
        store.begin(None)
        yield store.work
        store.finish([])


def _refuse_occupied(out: Path, target: Path) -> None:
    if (target / STATE).is_dir():
        return  # finished, but for the cleaning up: `begin` sees to it
    if (target / MANIFEST).exists() or any(target.glob(f"*/{MANIFEST}")):
        raise UserError(f"{out} already holds shards: delete it or give another --out.")
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file, where a folder of shards should be made: give another --out.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{out} holds other files: give an --out that is empty or does not exist.")
    if target.is_mount():
        raise UserError(f"{out} is a mount point and cannot be made in one step: give a folder inside it as --out.")


def _claim(partial: Path, out: Path) -> int:
    """Make `partial` and lock it; the lock of a killed run died with it."""
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"Another process is writing {out} now: wait for it or give another --out.") from None
    return lock


class _Folder:
    """A folder of this machine; shards are made where they stay."""

    def __init__(self, work: Path, target: Path) -> None:
        self.work, self._target = work, target

    def begin(self, plan: dict[str, Any] | None) -> list[bytes]:
        if (self._target / STATE).is_dir():
            if plan is None or _plan(self._target / STATE / PLAN) != plan:
                raise UserError(f"{self._target} already holds shards: delete it or give another --out.")
            _forget(self._target / STATE)
            raise Finished(self._target)
        states = self.states()
        if plan is None or _plan(self.work / STATE / PLAN) != plan:
            if states:
                say_afresh(self._target.name)
            self.restart()
            states = []
        for half in self.work.rglob("*.partial"):
            half.unlink()
        if plan is not None:
            (self.work / STATE).mkdir(exist_ok=True)
            write_bytes(self.work / STATE / PLAN, json.dumps(plan).encode())
        return states

    def states(self) -> list[bytes]:
        """Those that are whole, up to the first that is not."""
        return whole(path.read_bytes() for path in sorted((self.work / STATE).glob("*.state")))

    def keep(self, name: str) -> None:
        sync_folder((self.work / name).parent)

    def has(self, name: str, size: int) -> bool:
        path = self.work / name
        return path.is_file() and path.stat().st_size == size

    def seen(self, number: int) -> bytes:
        return unsealed((self.work / STATE / f"{number:06d}.state").read_bytes())[1]

    def add_state(self, state: bytes, seen: bytes) -> None:
        folder = self.work / STATE
        number = len(list(folder.glob("*.state")))
        write_bytes(folder / f"{number:06d}.state", sealed(state, seen))
        sync_folder(folder)

    def restart(self) -> None:
        plan = self.work / STATE / PLAN
        content = plan.read_bytes() if plan.exists() else None
        for left in self.work.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
        if content is not None:
            plan.parent.mkdir()
            write_bytes(plan, content)

    def reject(self, name: str) -> str:
        beside = self._target.with_name(f"{self._target.name}.{name}")
        os.replace(self.work / name, beside)
        sync_folder(beside.parent)
        return beside.name

    def discard(self) -> None:
        shutil.rmtree(self.work / STATE, ignore_errors=True)

    def finish(self, names: list[str]) -> None:
        for name in names:
            self.keep(name)
        sync_folder(self.work)
        os.rename(self.work, self._target)
        sync_folder(self._target.parent)
        _forget(self._target / STATE)


def _forget(states: Path) -> None:
    """Remove the states, and the plan last: while it is there, a run killed right here is known to be finished."""
    for state in states.glob("*.state"):
        state.unlink()
    shutil.rmtree(states, ignore_errors=True)


def say_afresh(out: str) -> None:
    print(
        f"The unfinished run of {out} was of another source, other options or another version: starting afresh.",
        file=sys.stderr,
    )


def sealed(state: bytes, seen: bytes) -> bytes:
    """A state as it is stored: a hash of the rest, the length of its JSON, that, and what `Seen` has new."""
    rest = len(state).to_bytes(8, "little") + state + seen
    return hashlib.sha256(rest).digest() + rest


def unsealed(content: bytes) -> tuple[bytes, bytes]:
    """The JSON and what follows."""
    end = 40 + int.from_bytes(content[32:40], "little")
    return content[40:end], content[end:]


def whole(stored: Iterator[bytes]) -> list[bytes]:
    """The JSON of the states that are whole, up to the first that is not."""
    states = []
    for content in stored:
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            break
        states.append(unsealed(content)[0])
    return states


def _plan(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
