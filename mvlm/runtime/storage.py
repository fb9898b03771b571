"""Storage: durable writes to disks, one client for whatever fsspec knows, and one policy of retries.

A file has its name only once it is whole and on the disk; a store puts an object in one step.
"""

from __future__ import annotations

import errno
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from mvlm.errors import DataLost, UserError
from mvlm.runtime.log import rank_log

PAUSES_S = (0.5, 2.0, 8.0)  # before each of the next attempts; most transient errors are over by then
RETRY_S = 5.0  # between attempts at a store that is gone
JITTER = 0.5  # share by which a pause may be longer, so that ranks do not all come back at once
LOOK_S = 0.05  # between checks of whether anybody still needs it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(UserError, ImportError, ValueError, TypeError),
)
TRY_AGAIN = (408, 425, 429)  # HTTP's client errors that may pass
_DICE = random.Random()  # not the global one, which a run seeds

Answer = TypeVar("Answer")


def write_durably(path: Path, content: str | bytes) -> None:
    """Replace a file's content in one rename, synced; its folder is made if it is missing."""
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    publish(partial, path)


def publish(partial: Path, path: Path) -> None:
    """Give a finished file its name, synced; a file that had the name before is replaced."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Sync a file's content, or the names in a folder, which syncing its files does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Outages:
    """What the threads of a process have found cannot be fetched for now.

    Args:
        patience: minutes to wait for a store that is gone.

    Attributes:
        reasons: by name, how fetching it last failed.
        given_up: nobody needs any of it any more.
    """

    def __init__(self, patience: float = 0.0):
        self.patience = patience
        self.reasons: dict[str, str] = {}
        self.given_up = False


class Attempts:
    """Attempts at one thing; leaving the context manager ends its outage, however the attempts ended."""

    def __init__(self, name: str, outages: Outages):
        self._name, self._outages = name, outages
        self._began, self._made = time.monotonic(), 0

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *_: object) -> None:
        self._outages.reasons.pop(self._name, None)

    def again(self, error: Exception) -> bool:
        """Whether to make another attempt after this error, having waited until it is worth making."""
        self._made += 1
        if self._made <= len(PAUSES_S):
            self._wait(_jittered(PAUSES_S[self._made - 1]))
            return True
        if not is_transient(error):
            return False
        if self._outages.patience and not self._outages.reasons:
            rank_log.warning(
                f"{self._name} is out of reach for now ({describe(error)}): waiting up to "
                f"{self._outages.patience:g} minutes, data.patience, for its store."
            )
        self._outages.reasons[self._name] = describe(error)
        left_s = self._began + 60 * self._outages.patience - time.monotonic()
        if left_s <= 0 or self._outages.given_up:
            return False
        self._wait(min(left_s, _jittered(RETRY_S)))
        return True

    def failure(self, error: Exception) -> UserError:
        """What to raise once no attempt is left; DataLost if a later start may find the store back."""
        failed = f"{self._name} cannot be read, after {self._made} attempts ({describe(error)})"
        if not is_transient(error):
            return UserError(f"{failed}: see that it is there as it was uploaded.")
        waited = f" in {self._outages.patience:g} minutes, data.patience" if self._outages.patience else ""
        return DataLost(f"{failed}{waited}: start the same command again when its store is back.")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._outages.given_up:
            time.sleep(min(left, LOOK_S))


def is_transient(error: Exception) -> bool:
    """Whether an error of a store, or of the way to it, may be gone a while later."""
    if isinstance(error, FINAL) or "Credential" in type(error).__name__:
        return False
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EROFS):
        return False
    status = getattr(error, "status", None)  # of aiohttp
    return not (isinstance(status, int) and 400 <= status < 500 and status not in TRY_AGAIN)


def describe(error: Exception) -> str:
    """An error in one line; one of ours is a sentence already."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".partition("\n")[0]


def _jittered(seconds: float) -> float:
    return seconds * _DICE.uniform(1.0, 1.0 + JITTER)


class Storage:
    """A prefix of an object store or of any file system that fsspec knows; for several threads at once.

    Errors that may pass are retried. All methods but `fetch_once` raise UserError on one that does not, and DataLost
    if the store is gone.

    Args:
        remedy: what to do then, as the end of a sentence.
        outages: those of the process, with how long to wait for a store that is gone; None = only a moment.

    Raises:
        UserError: nothing installed here speaks the URL's protocol.
    """

    def __init__(self, url: str, remedy: str, outages: Outages | None = None) -> None:
        self.url = url.rstrip("/")
        self._remedy, self._outages = remedy, outages or Outages()
        self._connection: tuple[Any, str] | None = None
        self._connect()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None}  # every process has its own

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of each file below a folder by its path from the prefix; 0 if a list has no sizes, as with HTTP."""
        root = self._connect()[1]

        def find(files: Any, path: str) -> dict[str, int]:
            found = files.find(path, detail=True)
            return {file[len(root) + 1 :]: int(facts["size"] or 0) for file, facts in found.items()}

        return self._ask(folder, "listed", find, {})

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when there is none."""
        return self._ask(name, "found", lambda files, path: int(files.info(path)["size"]), None)

    def read(self, name: str) -> bytes | None:
        """A small file's content; None when there is none."""
        return self._ask(name, "read", lambda files, path: bytes(files.cat_file(path)), None)

    def write(self, name: str, content: bytes) -> None:
        def put(files: Any, path: str) -> None:
            _make_parent(files, path)
            if _is_disk(files):
                _publish(Path(path), lambda partial: partial.write_bytes(content))
            else:
                files.pipe_file(path, content)

        self._try(name, "written", put)

    def upload(self, file: Path, name: str) -> None:
        def put(files: Any, path: str) -> None:
            _make_parent(files, path)
            if _is_disk(files):
                _publish(Path(path), lambda partial: shutil.copyfile(file, partial))
            else:
                files.put_file(str(file), path)

        self._try(name, f"made of {file}", put)

    def download(self, name: str, file: Path) -> None:
        """Leaves no file if there is none to fetch."""

        def get(files: Any, path: str) -> None:
            try:
                files.get_file(path, str(file))
            except FileNotFoundError:
                file.unlink(missing_ok=True)

        self._try(name, f"fetched into {file.parent}", get)

    def fetch_once(self, name: str, file: Path) -> None:
        """The same in a single attempt; raises what the store does."""
        files, root = self._connect()
        files.get_file(f"{root}/{name}", str(file))

    def delete(self, name: str) -> None:
        """A file, or a folder with all that is in it; it may be gone already."""
        self._ask(name, "deleted", lambda files, path: files.rm(path, recursive=True), None)

    def _ask(self, name: str, done: str, action: Callable[[Any, str], Answer], otherwise: Answer) -> Answer:
        """As `_try`, for what need not be there."""

        def ask(files: Any, path: str) -> Answer:
            files.invalidate_cache()
            try:
                return action(files, path)
            except FileNotFoundError:
                return otherwise

        return self._try(name, done, ask)

    def _try(self, name: str, done: str, action: Callable[[Any, str], Answer]) -> Answer:
        where = f"{self.url}/{name}".rstrip("/")
        with Attempts(where, self._outages) as attempts:
            while True:
                try:
                    files, root = self._connect()
                    return action(files, f"{root}/{name}".rstrip("/"))
                except Exception as error:  # each kind of store has its own
                    if not (is_transient(error) and attempts.again(error)):
                        raise self._failure(f"{where} cannot be {done}", attempts, error) from None

    def _failure(self, what: str, attempts: Attempts, error: Exception) -> UserError:
        if is_transient(error) and self._outages.patience:
            return attempts.failure(error)
        kind = DataLost if is_transient(error) else UserError
        is_full = isinstance(error, OSError) and error.errno in NO_ROOM  # a disk, not a store
        return kind(f"{what} ({describe(error)}): {'free some room there' if is_full else self._remedy}.")

    def _connect(self) -> tuple[Any, str]:
        """The store's client, and the prefix's path in it."""
        if self._connection is None:
            # 11 MB, and seconds with some protocols: loader processes do without it.
            from fsspec.core import url_to_fs
            from fsspec.implementations.local import LocalFileSystem

            path = unquote(self.url.removeprefix("file://")) if self.url.startswith("file://") else self.url
            try:  # fsspec itself would divide a path on a disk at "::"
                files, root = (LocalFileSystem(), path) if path.startswith("/") else url_to_fs(path)
            except (ImportError, ValueError) as error:
                raise UserError(
                    f"{self.url} cannot be used ({error}): install what that protocol needs, or {self._remedy}."
                ) from None
            self._connection = files, root.rstrip("/")
        return self._connection


def _make_parent(files: Any, path: str) -> None:
    files.makedirs(path.rpartition("/")[0], exist_ok=True)


def _publish(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file to a disk, where other nodes may be writing the same file at the same moment."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        fill(partial)
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_disk(files: Any) -> bool:
    return "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol)
