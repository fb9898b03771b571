"""Writing a corpus: nothing stands under its final name before all of it is on the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.record import Row
from mvlm.data.schema import MANIFEST, SCHEMA, Manifest, Shard
from mvlm.errors import UserError

BATCH_ROWS = 256
BATCH_BYTES = 8_000_000
"""A record batch ends at whichever comes first: what the loader's block-shuffled reads want to find together."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `out` in one rename if the block ends well and vanishes if not.

    Raises:
        UserError: `out` holds something already, another process is writing it, or there is no room for it.
    """
    target = out.resolve()
    _refuse_occupied(out, target)
    partial = target.with_name(f".{target.name}.partial")
    with writing(out):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _claim(partial, out)
        try:
            yield partial
            sync_folder(partial)
            os.rename(partial, target)
            sync_folder(target.parent)
        finally:
            os.close(lock)
            shutil.rmtree(partial, ignore_errors=True)


def _refuse_occupied(out: Path, target: Path) -> None:
    if (target / MANIFEST).exists() or any(target.glob(f"*/{MANIFEST}")):
        raise UserError(f"{out} already holds shards: delete it or give another --out.")
    if target.exists() and not target.is_dir():
        raise UserError(f"{out} is a file, where a folder of shards should be made: give another --out.")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{out} holds other files: give an --out that is empty or does not exist.")
    if target.is_mount():
        raise UserError(f"{out} is a mount point and cannot be made in one step: give a folder inside it as --out.")


def _claim(partial: Path, out: Path) -> int:
    """Make `partial` afresh and lock it; what a killed run left there is not locked and makes way."""
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"Another process is writing {out} now: wait for it or give another --out.") from None
    for left in partial.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
    return lock


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


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` by way of a temporary name, synced."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


class CorpusWriter:
    """Writes rows into `NNNNNN.arrow` shards of about `shard_bytes` under `folder`; `close` writes the manifest."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shard_bytes = folder, shard_bytes
        self._shards: list[Shard] = []
        self._shard: _ShardFile | None = None
        self._pending: list[Row] = []
        self._pending_bytes = 0
        self.rows = self.captions = self.image_bytes = 0

    def add(self, row: Row) -> None:
        self._pending.append(row)
        self._pending_bytes += len(row.image)
        self.rows += 1
        self.captions += len(row.captions)
        self.image_bytes += len(row.image)
        full = (self._shard.image_bytes if self._shard else 0) + self._pending_bytes >= self._shard_bytes
        if full or len(self._pending) >= BATCH_ROWS or self._pending_bytes >= BATCH_BYTES:
            self._flush()
        if full:
            self._end_shard()

    def close(self) -> Manifest:
        self._flush()
        self._end_shard()
        manifest = Manifest(self.rows, self.captions, self.image_bytes, tuple(self._shards))
        write_text(self._folder / MANIFEST, manifest.to_json())
        sync_folder(self._folder)
        return manifest

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._shard is None:
            self._shard = _ShardFile(self._folder / f"{len(self._shards):06d}.arrow")
        self._shard.write(self._pending)
        self._pending, self._pending_bytes = [], 0

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.close())
            self._shard = None


class _ShardFile:
    """One Arrow IPC file being written, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = _HashingSink(path)
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self.rows = self.image_bytes = 0

    def write(self, rows: list[Row]) -> None:
        columns = [pa.array([getattr(row, f.name) for row in rows], type=f.type) for f in SCHEMA]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self.rows += len(rows)
        self.image_bytes += sum(len(row.image) for row in rows)

    def close(self) -> Shard:
        self._writer.close()
        return Shard(self._path.name, self.rows, *self._sink.finish())


class _HashingSink:
    """The file-like object pyarrow writes to."""

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._file = self._partial.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._sha256.update(view)
        self._bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True
        self._file.close()

    def finish(self) -> tuple[int, str]:
        """Sync, give the file its name, and return its length and hash."""
        if not self._file.closed:
            self._file.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._partial, self._path)
        return self._bytes, self._sha256.hexdigest()
