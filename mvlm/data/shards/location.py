"""Where a corpus lies: a folder, or a URL whose shards come through the node's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.files import Shard
from mvlm.data.shards.indexed import located
from mvlm.data.shards.integrity import check_index_length, check_length
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.schema import MANIFEST, Manifest, parse_manifest, read_manifest
from mvlm.data.shards.takedown import TAKEDOWN, read_takedown, taken_down
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

LOOKED_AT = 1000
"""How many shards are checked for the manifest's lengths when a folder is opened."""

REMEDY = "give the URL of finished shards, and what the store needs for access"


class LocalShards:
    """A folder of shards, read in place.

    Attributes:
        taken_down: rows that must not be used, ascending.

    Raises:
        UserError: it is missing or unfinished, or one of the first `LOOKED_AT` shards is missing or has another length
            than written.
    """

    cached = False

    def __init__(self, folder: str | Path):
        self.folder, self._prefix = Path(folder), f"{Path(folder)}{os.sep}"
        self.manifest: Manifest = read_manifest(self.folder)
        self.taken_down: Sequence[int] = read_takedown(self.folder, self.manifest)
        # Any further shards are checked when they are first read: starting must not take minutes.
        first = range(min(len(self.manifest.shards), LOOKED_AT))
        self._written = {n: check_length(self.folder, self.manifest.shards[n]) for n in first}

    def name(self, number: int) -> str:
        return self._prefix + self.manifest.shards.file(number)

    def map(self, number: int, shard: Shard) -> MappedFile:
        """Map a shard; raises `UserError` if it is missing or changed since the corpus was opened, and OSError."""
        file = self._mapped(shard, check_length)
        if self._written.setdefault(number, file.written_ns) != file.written_ns:
            raise UserError(
                f"{self.name(number)} was written to since it was opened: copy or shard it again, then start again."
            )
        return file

    def map_index(self, index: Shard) -> MappedFile:
        """Map a shard's row index; raises `UserError` if it is missing or cut, and OSError."""
        return self._mapped(index, check_index_length)

    def map_table(self, table: Shard) -> MappedFile:
        """Map a shard's table; raises the same."""
        return self._mapped(table, check_length)

    def _mapped(self, wanted: Shard, check: Callable[[Path, Shard], object]) -> MappedFile:
        """Map a file of the right length; otherwise `check` says what is wrong with it."""
        try:
            file = MappedFile(self._prefix + wanted.file)
        except (FileNotFoundError, ValueError):
            check(self.folder, wanted)
            raise
        if len(file.data) != wanted.bytes:
            check(self.folder, wanted)
        return file

    def changed(self, number: int) -> bool:
        """Whether the shard was written to, cut or removed since the corpus was opened."""
        try:
            return check_length(self.folder, self.manifest.shards[number]) != self._written.get(number)
        except UserError:
            return True

    def fetch(self, number: int) -> None:
        """Nothing to do: the shard is here."""

    def prefetch(self, number: int, sooner: Collection[Shard]) -> None:
        """Nothing to do."""


class RemoteShards:
    """Shards at a URL of any protocol that fsspec knows, read from local copies whose hashes were checked.

    Raises:
        UserError: the URL cannot be used, or holds no finished shards.
        DataLost: its store is unreachable, and waiting for it did not help.
    """

    cached = True

    def __init__(self, url: str, cache: Cache):
        self.cache = cache
        cache.make()
        self._store = Storage(url, REMEDY, cache.outages)
        self.folder = self.url = self._store.url
        where = f"{self.url}/{MANIFEST}"
        content = self._store.read(MANIFEST)
        if content is None:
            raise UserError(f"{where} cannot be read (there is none): {REMEDY}.")
        self.manifest: Manifest = parse_manifest(content.decode("utf-8", "replace"), where)
        listed = f"{self.url}/{TAKEDOWN}"
        self.taken_down: Sequence[int] = taken_down(self._store.read(TAKEDOWN), self.manifest, listed)

    def name(self, number: int) -> str:
        return f"{self.url}/{self.manifest.shards.file(number)}"

    def map(self, number: int, shard: Shard) -> MappedFile:
        """Map a shard; raises `UserError` or `DataLost` if it cannot be fetched."""
        return self.map_index(shard)

    def map_index(self, file: Shard) -> MappedFile:
        """Map a shard's row index, or a table; raises like `map`."""
        while True:
            self._get(file)
            try:
                return MappedFile(self.cache.path(file))
            except FileNotFoundError:  # dropped in between
                continue

    map_table = map_index

    def changed(self, number: int) -> bool:
        """Never: what was fetched had the right hash."""
        return False

    def fetch(self, number: int) -> None:
        """Bring the shard and its row index into the cache; raises like `map`."""
        for file in self.manifest.shards[number].trained_on:
            self._get(file)

    def prefetch(self, number: int, sooner: Collection[Shard]) -> Exception | None:
        """Fetch them ahead of time with `Cache.prefetch`; return what went wrong, if anything."""
        for file in self.manifest.shards[number].trained_on:
            if failure := self.cache.prefetch(file, partial(self._fetch, file), sooner):
                return failure
        return None

    def _get(self, file: Shard) -> None:
        self.cache.get(file, f"{self.url}/{file.file}", partial(self._fetch, file))

    def _fetch(self, file: Shard, path: Path) -> None:
        self._store.fetch_once(file.file, path)


ShardLocation = LocalShards | RemoteShards


def open_location(folder: str | Path, cache: Cache) -> ShardLocation:
    """Open a folder of shards, a URL, or tar, Arrow or Parquet files that other programs wrote."""
    return RemoteShards(str(folder), cache) if "://" in str(folder) else LocalShards(located(folder))
