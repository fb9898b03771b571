"""Writing rows into shards: Arrow IPC files that get their final names when they are complete and on disk."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from mvlm.data.shards.files import Shard, Shards
from mvlm.data.shards.in_place import image_bytes
from mvlm.data.shards.schema import CAPTION, MANIFEST, SCHEMAS, Manifest
from mvlm.runtime.storage import publish, write_durably

from .meta import MetaColumns
from .row_index import add_index

BATCH_ROWS = 256
BATCH_BYTES = 8_000_000
"""A record batch ends at whichever comes first; the sizes suit the loader's block-shuffled reads."""

BINARY_LIMIT = 2**31 - 1
"""Bytes that the int32 offsets of one batch's image column can address."""

MOST_PIECES = 512
"""Pieces written by one system call; POSIX promises 1,024 on Linux."""


class CorpusWriter:
    """Writes rows into `NNNNNN.arrow` shards of about `shard_bytes` under `folder`, each with its row index and table.

    `close` writes the manifest. `shards` are those finished so far. `stem` gives the n-th one's name without its
    ending.
    """

    def __init__(
        self,
        folder: Path,
        shard_bytes: int,
        task: str = CAPTION,
        stem: Callable[[int], str] = "{:06d}".format,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shard_bytes = folder, shard_bytes
        self._schema, self.task, self._stem = SCHEMAS[task], task, stem
        self._images = [field.name for field in self._schema if pa.types.is_binary(field.type)]
        self._single = self._images == ["image"]
        self.shards: list[Shard] = []
        self._shard: _ShardFile | None = None
        self._meta = MetaColumns(task)
        self._pending: list[Any] = []
        self._pending_bytes = 0
        self.rows = self.captions = self.image_bytes = 0

    def add(self, row: Any) -> bool:
        """Take a row, an object with the schema's fields as attributes and perhaps `meta`, what else is known about it.

        Returns:
            Whether it was the last of its shard.
        """
        size = image_bytes(row.image) if self._single else sum(len(getattr(row, name)) for name in self._images)
        if self._pending and self._pending_bytes + size > BINARY_LIMIT:
            self._flush()
        self._pending.append(row)
        self._pending_bytes += size
        self.rows += 1
        self.captions += len(getattr(row, "captions", ()))
        self.image_bytes += size
        full = (self._shard.image_bytes if self._shard else 0) + self._pending_bytes >= self._shard_bytes
        if full or len(self._pending) >= BATCH_ROWS or self._pending_bytes >= BATCH_BYTES:
            self._flush()
        if full:
            self._end_shard()
        return full

    def end(self) -> Manifest:
        """Finish the last shard."""
        self._flush()
        self._end_shard()
        return Manifest(self.rows, self.captions, self.image_bytes, Shards(self.shards), self.task)

    def close(self) -> Manifest:
        """Finish the last shard and write the manifest."""
        manifest = self.end()
        write_durably(self._folder / MANIFEST, manifest.to_json())
        return manifest

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._shard is None:
            self._shard = _ShardFile(self._folder / f"{self._stem(len(self.shards))}.arrow", self._schema)
        self._shard.write(self._pending, self._pending_bytes)
        self._meta.add(self._pending)
        self._pending, self._pending_bytes = [], 0

    def _end_shard(self) -> None:
        if self._shard is not None:
            shard = add_index(self._folder, self._shard.close(), self.task)
            self.shards.append(self._meta.write(self._folder, shard))
            self._shard = None


class _ShardFile:
    """One Arrow IPC file being written, hashed on the way."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._sink = _Sink(path)
        self._writer = pa.ipc.new_file(self._sink, schema)
        self.rows = self.image_bytes = 0

    def write(self, rows: list[Any], image_bytes: int) -> None:
        columns = []
        for field in self._schema:
            values = [getattr(row, field.name) for row in rows]
            binary = pa.types.is_binary(field.type)
            columns.append(self._sink.promise(values) if binary else pa.array(values, type=field.type))
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self.rows += len(rows)
        self.image_bytes += image_bytes

    def close(self) -> Shard:
        self._writer.close()
        return Shard(self._path.name, self.rows, *self._sink.finish())


class _Sink:
    """The file-like object pyarrow writes to.

    pyarrow would copy each image twice before writing it. Instead it is given a stretch of memory that nobody ever
    touches (`promise`), and when it writes that, the images themselves are written in its place.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._file = self._partial.open("wb", buffering=0)
        self._digest = blake3()
        self._bytes = 0
        self._promised: dict[int, list[bytes]] = {}
        self.closed = False

    def promise(self, values: list[bytes]) -> pa.Array:
        """An array of these values of which only the offsets are real; it must be written before anything reads it."""
        offsets = np.zeros(len(values) + 1, np.int32)
        np.cumsum([len(value) for value in values], out=offsets[1:])
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        untouched = pa.py_buffer(mmap.mmap(-1, max(1, int(offsets[-1])), flags=flags, prot=mmap.PROT_READ))
        stretch = untouched.slice(0, int(offsets[-1]))
        self._promised[stretch.address] = values
        return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(offsets), stretch])

    def write(self, data: Any) -> int:
        size = len(data)
        values = self._promised.pop(data.address, None) if isinstance(data, pa.Buffer) else None
        pieces = [memoryview(data)] if values is None else [memoryview(value) for value in values]
        for piece in pieces:
            self._digest.update(piece)
        self._write_all(pieces)
        self._bytes += size
        return size

    def _write_all(self, pieces: list[memoryview]) -> None:
        while pieces:
            done = os.writev(self._file.fileno(), pieces[:MOST_PIECES])
            while pieces and done >= len(pieces[0]):
                done -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][done:]

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
        publish(self._partial, self._path)
        return self._bytes, self._digest.hexdigest()
