"""The store of a corpus that is written to a folder of this machine: filled as `.NAME.partial`, and renamed."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mvlm.data.shards.schema import corpora_in
from mvlm.errors import UserError
from mvlm.runtime.storage import NO_ROOM, publish, sync

from ..part import PartManifest
from .disk import writing
from .store import PART, PLAN, STATE, Finished, Store


@contextmanager
def open_folder(out: Path, resumable: bool, shared: bool = False) -> Iterator[Store]:
    """Yield the store for `out`, which vanishes if the block fails, unless it is `resumable` and holds a finished part.

    Args:
        shared: other processes do the same, and each makes some of the parts.

    Raises:
        UserError: `out` holds something already, another process is writing it, or there is no room for it.
    """
    target = out.resolve()
    with writing(out):
        _refuse_occupied(out, target)
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial, out, shared)
        folder = FolderStore(partial, target, shared)
        try:
            yield folder
        except OSError as error:
            if error.errno in NO_ROOM and resumable and folder.has_parts:
                raise UserError(
                    f"No room to write {out} ({error.strerror}): free space and run the same command again, "
                    "which resumes where this one stopped."
                ) from None
            raise
        finally:
            os.close(lock)
            if not (shared or (resumable and folder.has_parts)):
                shutil.rmtree(partial, ignore_errors=True)


def _refuse_occupied(out: Path, target: Path) -> None:
    if (target / STATE).is_dir():
        return  # finished except for the cleaning up, which `begin` does
    if corpora_in(target):
        raise UserError(f"{out} already holds shards: delete it or give another --out.")
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file, where a folder of shards should be made: give another --out.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{out} holds other files: give an --out that is empty or does not exist.")
    if target.is_dir() and target.samefile("."):
        raise UserError(f"{out} is the current folder, which cannot be replaced: give a folder inside it as --out.")
    if target.is_mount():
        raise UserError(f"{out} is a mount point and cannot be made in one step: give a folder inside it as --out.")


def _claim(partial: Path, out: Path, shared: bool) -> int:
    """Make `partial` and lock it; the lock of a killed run died with it."""
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"Another process is writing {out} now: wait for it or give another --out.") from None
    return lock


class FolderStore(Store):
    """A folder of this machine; shards are made where they stay."""

    def __init__(self, work: Path, target: Path, shared: bool = False) -> None:
        super().__init__(target.name, work, shared)
        self._target = target

    def begin(self, plan: dict[str, Any] | None) -> list[PartManifest]:
        if (self._target / STATE).is_dir():
            if plan is None or FolderStore(self._target, self._target).plan() != plan:
                raise UserError(f"{self._target} already holds shards: delete it or give another --out.")
            _forget(self._target / STATE)
            raise Finished(self._target)
        if not self.shared:
            for half in self.work.rglob("*.partial"):
                half.unlink()
        return super().begin(plan)

    @property
    def has_parts(self) -> bool:
        """Whether anything is there to resume."""
        return any((self.work / STATE).glob(f"*{PART}"))

    def for_task(self) -> AbstractContextManager[Store]:
        return nullcontext(self)

    def keep(self, name: str) -> None:
        sync((self.work / name).parent)

    def local(self, name: str) -> Path:
        return self.work / name

    def restart(self) -> None:
        """Remove everything but the plan."""
        plan = self.read(PLAN)
        for left in self.work.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
        if plan is not None:
            self.write(PLAN, plan)

    def reject(self, name: str) -> str:
        beside = self._target.with_name(f"{self._target.name}.{name}")
        publish(self.work / name, beside)
        return beside.name

    def finish(self, names: list[str]) -> None:
        for name in names:
            self.keep(name)
        sync(self.work)
        os.rename(self.work, self._target)
        sync(self._target.parent)
        _forget(self._target / STATE)

    def sizes(self) -> dict[str, int]:
        files = (path for path in self.work.rglob("*") if path.is_file())
        return {str(path.relative_to(self.work)): path.stat().st_size for path in files}

    def read(self, name: str) -> bytes | None:
        try:
            return (self.work / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        partial = self.work / f"{name}.{secrets.token_hex(4)}.partial"  # another process may be writing it too
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(content)
        publish(partial, self.work / name)

    def delete(self, name: str) -> None:
        (self.work / name).unlink(missing_ok=True)


def _forget(states: Path) -> None:
    """Remove the files of parts, and the plan last: while it is there, a run killed here counts as finished."""
    for file in states.glob("[0-9]*"):
        file.unlink()
    shutil.rmtree(states, ignore_errors=True)
