"""Where a corpus is written: a folder of this machine or any fsspec URL; nothing looks whole before it is.

Both keep, until the end, what a restart needs: the plan (what is being made of what) and one state a checkpoint.
A folder is filled as `.NAME.partial` and renamed; a URL gets each shard when it is finished and its manifests last.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mvlm.data.schema import MANIFEST
from mvlm.errors import UserError

STATE = ".state"
PLAN = "plan.json"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
OURS = re.compile(r"([A-Za-z0-9_-]+/)?(\d{6}\.arrow|manifest\.json|quarantine\.jsonl|yield\.(json|txt)|source\.json)")
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

    def add_state(self, state: bytes) -> None:
        """Make a state last; what it speaks of was kept before."""
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
        with _remote(out) as store:
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
            shutil.rmtree(self._target / STATE)
            raise Finished(self._target)
        states = self.states()
        if plan is None or _plan(self.work / STATE / PLAN) != plan:
            if states:
                _say_afresh(self._target.name)
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
        return _whole(path.read_bytes() for path in sorted((self.work / STATE).glob("*.state")))

    def keep(self, name: str) -> None:
        sync_folder((self.work / name).parent)

    def has(self, name: str, size: int) -> bool:
        path = self.work / name
        return path.is_file() and path.stat().st_size == size

    def add_state(self, state: bytes) -> None:
        folder = self.work / STATE
        number = len(list(folder.glob("*.state")))
        write_bytes(folder / f"{number:06d}.state", _sealed(state))
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
        shutil.rmtree(self._target / STATE, ignore_errors=True)


@contextmanager
def _remote(url: str) -> Iterator[Store]:
    from fsspec.core import url_to_fs  # seconds to import with some protocols

    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be written ({error}): install what that protocol needs.") from None
    with tempfile.TemporaryDirectory(prefix="mvlm-shards-") as work:
        try:
            yield _Remote(files, root.rstrip("/"), url, Path(work))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise UserError(
                    f"No room for a shard of {url} in {Path(work).parent} ({error.strerror}): free space, "
                    "set TMPDIR or give a smaller --shard-mb."
                ) from None
            raise


class _Remote:
    """A prefix of an object store or a remote file system. Two writers of one URL are not kept apart."""

    def __init__(self, files: Any, root: str, url: str, work: Path) -> None:
        self._files, self._root, self._url, self.work = files, root, url, work
        self._count = 0

    def begin(self, plan: dict[str, Any] | None) -> list[bytes]:
        held = self._names()
        planned = f"{STATE}/{PLAN}" in held
        if not planned and any(name.rpartition("/")[2] == MANIFEST for name in held):
            raise UserError(f"{self._url} already holds shards: delete it or give another --out.")
        if not planned and held:
            raise UserError(f"{self._url} holds other files: give an --out that is empty or does not exist.")
        if planned and (plan is None or json.loads(self._files.cat_file(f"{self._root}/{STATE}/{PLAN}")) != plan):
            _say_afresh(self._url)
            self.restart()
        self._files.pipe_file(f"{self._root}/{STATE}/{PLAN}", json.dumps(plan).encode())
        names = sorted(name for name in self._names() if name.endswith(".state"))
        states = _whole(self._files.cat_file(f"{self._root}/{name}") for name in names)
        self._count = len(states)
        return states

    def _names(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            return [path[len(self._root) :].lstrip("/") for path in map(str, self._files.find(self._root))]
        except FileNotFoundError:
            return []

    def keep(self, name: str) -> None:
        path = self.work / name
        self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(path), f"{self._root}/{name}")
        if not self.has(name, path.stat().st_size):
            raise UserError(f"{self._url}/{name} did not arrive in full: run the same command again.")
        path.unlink()

    def has(self, name: str, size: int) -> bool:
        self._files.invalidate_cache()
        try:
            return bool(self._files.info(f"{self._root}/{name}")["size"] == size)
        except FileNotFoundError:
            return False

    def add_state(self, state: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{STATE}/{self._count:06d}.state", _sealed(state))
        self._count += 1

    def restart(self) -> None:
        for name in self._names():
            if OURS.fullmatch(name) or name.endswith(".state"):
                self._files.rm_file(f"{self._root}/{name}")
        self._count = 0

    def reject(self, name: str) -> str:
        self._files.put_file(str(self.work / name), f"{self._root}.{name}")
        return f"{self._url.rstrip('/')}.{name}".rpartition("/")[2]

    def discard(self) -> None:
        self.restart()
        self._files.rm_file(f"{self._root}/{STATE}/{PLAN}")

    def finish(self, names: list[str]) -> None:
        for name in names:
            self.keep(name)
        for name in sorted(self._names()):
            if name.startswith(f"{STATE}/"):
                self._files.rm_file(f"{self._root}/{name}")


def _say_afresh(out: str) -> None:
    print(
        f"The unfinished run of {out} was of another source, other options or another version: starting afresh.",
        file=sys.stderr,
    )


def _sealed(state: bytes) -> bytes:
    return hashlib.sha256(state).digest() + state


def _whole(sealed: Iterator[bytes]) -> list[bytes]:
    states = []
    for content in sealed:
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            break
        states.append(content[32:])
    return states


def _plan(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn the disk's refusals into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(f"No room to write {out} ({error.strerror}): free space or give another --out.") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise UserError(f"{out} cannot be written ({error.strerror}): give another --out.") from None
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` by way of a temporary name, synced."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, likewise."""
    write_bytes(path, text.encode())
