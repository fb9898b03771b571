"""Tables for a corpus that several processes make, each for some of its shards, and put in place once all are there.

Until then they wait in a separate folder beside the shards, whose name depends on what made them, so that tables of two
makers never mix. A corpus may lie in a folder or at a URL.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.files import Shard, Shards, table_file
from mvlm.data.shards.location import open_location
from mvlm.data.shards.schema import MANIFEST, parse_manifest
from mvlm.data.shards.tables import table_bytes
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

MADE_BY = b"mvlm made by"
"""The key in a table's own metadata for what made it and the hash of its shard."""

REMEDY = "give a folder or a URL that can be written to"


class StagedTables:
    """The tables of a corpus while they are being made.

    Args:
        folder: of the corpus, or a URL.
        names: of the tables that each shard gets.
        made_by: what the tables depend on besides the shard.
    """

    def __init__(self, folder: str | Path, names: Sequence[str], made_by: str, cache: Cache) -> None:
        self.names, self._made_by = names, made_by
        self.location = open_location(folder, cache)
        self.folder = str(self.location.folder)  # the index's, if the corpus is read in place
        self._storage = Storage(self.folder if self.location.cached else str(Path(self.folder).absolute()), REMEDY)
        self._staged = f".{names[0]}-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"
        self._in_place = {n for n, shard in enumerate(self.location.manifest.shards) if self._is_in_place(shard)}
        self._done = self._listed()

    def missing(self) -> list[int]:
        """The shards that have no tables yet, as far as this process knows."""
        return [n for n in range(len(self.location.manifest.shards)) if n not in self._in_place | self._done]

    def add(self, number: int, tables: Mapping[str, pa.Table]) -> None:
        """Store a shard's tables, by name."""
        shard = self.location.manifest.shards[number]
        for name in self.names:
            table = tables[name].replace_schema_metadata({MADE_BY: self._signature(shard)})
            self._storage.write(self._path(shard, name), table_bytes(table))
        self._done.add(number)

    def table(self, number: int, name: str) -> pa.Table:
        """A table of a shard that has it, staged or in place."""
        shard = self.location.manifest.shards[number]
        if number in self._done:
            content = self._storage.read(self._path(shard, name))
            if content is None:
                raise UserError(f"{self.folder}/{self._path(shard, name)} is gone: run the same command again.")
            return pq.read_table(pa.BufferReader(content))
        known = shard.table(name)
        assert known
        return pq.read_table(pa.BufferReader(pa.py_buffer(self.location.map_table(known).data)))

    def finish(self) -> int:
        """If none is missing, put all tables in place and list them in the manifest; return how many are missing."""
        with self._alone():
            self._done = self._listed()
            missing = self.missing()
            if not missing and self._done:
                self._put_in_place()
        return len(missing)

    def _put_in_place(self) -> None:
        path = f"{self.folder}/{MANIFEST}"
        manifest = parse_manifest((self._storage.read(MANIFEST) or b"").decode("utf-8", "replace"), path)
        shards = [self._placed(n, shard) if n in self._done else shard for n, shard in enumerate(manifest.shards)]
        self._storage.write(MANIFEST, replace(manifest, shards=Shards(shards)).to_json().encode())
        self._storage.delete(self._staged)

    def _placed(self, number: int, shard: Shard) -> Shard:
        tables = [table for table in shard.tables if table[0] not in self.names]
        for name in self.names:
            content = self._storage.read(self._path(shard, name))
            assert content  # it was listed
            self._storage.write(table_file(shard.file, name), content)
            tables.append((name, len(content), hashlib.sha256(content).hexdigest()))
        return replace(shard, tables=tuple(tables))

    def _listed(self) -> set[int]:
        there = set(self._storage.sizes(self._staged))
        shards = self.location.manifest.shards
        return {n for n, shard in enumerate(shards) if all(self._path(shard, name) in there for name in self.names)}

    def _is_in_place(self, shard: Shard) -> bool:
        for name in self.names:
            table = shard.table(name)
            try:
                content = table and self.location.map_table(table).data
                metadata = pq.read_schema(pa.BufferReader(pa.py_buffer(content))).metadata if content else None
            except (OSError, ValueError, pa.ArrowException, UserError):  # it will be made again
                return False
            if (metadata or {}).get(MADE_BY) != self._signature(shard):
                return False
        return True

    def _path(self, shard: Shard, name: str) -> str:
        return f"{self._staged}/{shard.hash[:16]}-{table_file(shard.file, name)}"

    def _signature(self, shard: Shard) -> bytes:
        return f"{self._made_by} {shard.hash}".encode()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes on this machine, or on one that shares the disk, from putting tables in place.

        At a URL two may do so at once, but they write the same.
        """
        if self.location.cached:
            yield
            return
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
