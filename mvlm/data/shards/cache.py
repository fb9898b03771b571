"""A size-limited cache on a node for shards stored elsewhere, shared by all processes of the node.

A shard is `<hash>.arrow`, and gets that name only once its bytes have been checked against the hash; from then on it is
trusted, since only the user may write there and every row has its own checksum. While it is being fetched it is
`<hash>.<bytes>.part`, and the process that fetches it holds a lock on `<hash>.lock`. The least recently touched shard
is dropped first, so whoever knows what is needed next touches that last. A mapped shard may be dropped: its bytes
remain until it is unmapped.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mvlm.data.shards.files import Shard
from mvlm.data.shards.integrity import has_its_hash
from mvlm.errors import OUT_OF_SIGHT, UserError, cannot_read
from mvlm.runtime.storage import NO_ROOM, Attempts, Outages

WAIT_S = 0.05  # for another process to finish a shard

HASH = "[0-9a-f]" * 64
"""How our files' names begin: a folder that the user gave may hold other files, shards among them."""

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

Fetch = Callable[[Path], None]
"""Writes a shard's bytes to a file; whatever it raises counts as one failure."""


class Cache:
    """The cache of this node.

    Args:
        folder: on a disk of this node; "" = the user's own in TMPDIR.
        gigabytes: limit for all shards together; a larger shard is kept alone.
        patience: minutes to wait for a store that is unreachable.

    Attributes:
        outages: what is being waited for.
    """

    def __init__(self, folder: str = "", gigabytes: float = 32.0, patience: float = 0.0):
        self.folder = Path(folder) if folder else Path(tempfile.gettempdir()) / f"mvlm-shards-{os.getuid()}"
        self.capacity = int(gigabytes * 1e9)
        self.outages = Outages(patience)

    def make(self) -> None:
        """Make the folder; raises `UserError` if that fails, or if anyone but the user may write to it, and `DataLost`
        if its disk is lost."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
        except OSError as error:
            raise self._unusable("made", error, "set data.cache to a folder you can write to") from None
        if found.st_uid != os.getuid():
            raise UserError(
                f"The cache {self.folder} belongs to user {found.st_uid} and not to you, so that its shards cannot be "
                "trusted: set data.cache to a folder of your own."
            )
        if found.st_mode & WRITABLE_BY_OTHERS:
            raise UserError(
                f"The cache {self.folder} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}), so that "
                "its shards cannot be trusted: empty it and chmod it to 700, or set data.cache to another folder."
            )

    def path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.hash}.arrow"

    def holds(self, shard: Shard) -> bool:
        try:
            return self.path(shard).stat().st_size == shard.bytes
        except OSError:  # it is not there, or whoever fetches it will hear what is wrong with the folder
            return False

    def touch(self, shards: Collection[Shard]) -> None:
        """Mark those that are present as just used, the last one most recently, so that it is dropped last."""
        for shard in shards:
            with suppress(OSError):  # it was dropped, or the folder is read-only and nothing will be
                os.utime(self.path(shard))

    def get(self, shard: Shard, name: str, fetch: Fetch) -> Path:
        """The shard's file, fetched if need be, with retries; it may be dropped at any time.

        Raises:
            UserError: it cannot be fetched; says `name`, or what is wrong with the folder.
            DataLost: its store is unreachable, and waiting for it did not help, or the folder's disk is lost.
        """
        with Attempts(name, self.outages) as attempts:
            while not self.holds(shard):
                failure = self._fetch_in_turn(shard, fetch)
                if failure and not attempts.again(failure):
                    raise attempts.failure(failure)
        return self.path(shard)

    def _fetch_in_turn(self, shard: Shard, fetch: Fetch) -> Exception | None:
        """Make one attempt, once no other process is making one; return what went wrong. Raises like `_locked`."""
        try:
            with self._locked(shard, wait=True) as mine:
                if not mine or self.holds(shard):
                    return None
                while (part := self._make_room(shard, keep=())) is None:
                    time.sleep(WAIT_S)
                return self._fill(part, shard, fetch)
        except FileNotFoundError as error:  # the folder is being cleaned up
            return error

    def prefetch(self, shard: Shard, fetch: Fetch, sooner: Collection[Shard]) -> Exception | None:
        """Try once to fetch a shard, unless another process does or a shard needed sooner would have to be dropped.

        Returns:
            What went wrong, if anything.
        """
        try:
            with self._locked(shard, wait=False) as mine:
                if mine and not self.holds(shard) and (part := self._make_room(shard, keep=sooner)):
                    return self._fill(part, shard, fetch)
        except (UserError, FileNotFoundError) as error:
            return error
        return None

    @contextmanager
    def _locked(self, shard: Shard, wait: bool) -> Iterator[bool]:
        """Whether it is for us to fetch this shard; it is not if another process is doing so or just has.

        Raises as `make` does if the folder cannot be written, and FileNotFoundError if it disappears meanwhile.
        """
        self.make()  # once more: temporary folders are cleaned up
        path = self.folder / f"{shard.hash}.lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            mine = _lock(file, wait) and _is_at(path, file)
            try:
                yield mine
            finally:
                if mine:
                    path.unlink(missing_ok=True)
                os.close(file)
        except FileNotFoundError:
            raise
        except OSError as error:
            remedy = "free room on its disk, lower data.cache_gb, or set data.cache to another folder"
            raise self._unusable("written", error, remedy) from None

    def _unusable(self, done: str, error: OSError, remedy: str) -> UserError:
        if error.errno in OUT_OF_SIGHT and error.errno != errno.EROFS:  # it may be meant to be read-only
            return cannot_read(f"The cache {self.folder}", error, remedy)
        return UserError(f"The cache {self.folder} cannot be {done} ({error}): {remedy}.")

    def _fill(self, part: Path, shard: Shard, fetch: Fetch) -> Exception | None:
        """Fetch a shard into `part` and rename that; return what went wrong. Raises OSError if the disk is full."""
        try:
            fetch(part)
            with open(part, "rb") as file:
                if not has_its_hash(file, shard):
                    return UserError("its hash is not the manifest's")
            part.rename(self.path(shard))
        except Exception as error:  # each store raises its own
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            return error
        finally:
            part.unlink(missing_ok=True)
        return None

    def _make_room(self, shard: Shard, keep: Collection[Shard]) -> Path | None:
        """The file to fetch a shard into, once there is room; None while others are being fetched or kept instead.

        A shard larger than the whole cache gets room once nothing else is there.
        """
        kept = {self.path(other) for other in keep}
        part = self.folder / f"{shard.hash}.{shard.bytes}.part"
        with open(self.folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            part.unlink(missing_ok=True)  # left by a process that was killed
            fetched = sum(self._reserved(other) for other in self.folder.glob(f"{HASH}.*.part"))
            whole = {path: path.stat() for path in self.folder.glob(f"{HASH}.arrow")}
            total = fetched + sum(stat.st_size for stat in whole.values())
            for path in sorted(whole.keys() - kept, key=lambda path: whole[path].st_mtime_ns):
                if total + shard.bytes <= self.capacity:
                    break
                path.unlink()
                total -= whole[path].st_size
            if total and total + shard.bytes > self.capacity:
                return None
            part.touch()
            return part

    def _reserved(self, part: Path) -> int:
        """The size of a shard that is being fetched; 0 if the process fetching it has died."""
        name, size, _ = part.name.split(".")
        try:
            file = os.open(self.folder / f"{name}.lock", os.O_RDWR)
        except FileNotFoundError:
            part.unlink(missing_ok=True)
            return 0
        try:
            if _lock(file, wait=False):
                part.unlink(missing_ok=True)
                return 0
        finally:
            os.close(file)
        return int(size)


def _lock(file: int, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, file: int) -> bool:
    """Whether an open file is still the one at that path, and was not replaced while we waited for it."""
    try:
        return path.stat().st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False
