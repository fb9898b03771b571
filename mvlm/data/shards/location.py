"""Where a corpus lies: a folder, or a URL whose shards come through the node's cache."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.integrity import check_index_length, check_length
from mvlm.data.shards.mapped import MappedFile
from mvlm.data.shards.schema import MANIFEST, Manifest, Shard, parse_manifest, read_manifest
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

LOOKED_AT = 1000
"""Shards whose lengths are compared with the manifest's when a folder is opened."""

REMEDY = "give the URL of finished shards, and what the store needs for access"


class LocalShards:
    """A folder of shards, read in place.

    Raises:
        UserError: it is missing or unfinished, or one of the first `LOOKED_AT` shards is missing or has another length
            than written.
    """

    cached = False

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        # Of a corpus with more shards, each is looked at when it is first read: starting must not take minutes.
        first = range(min(len(self.manifest.shards), LOOKED_AT))
        self._written = {n: check_length(self.folder, self.manifest.shards[n]) for n in first}

    def name(self, number: int) -> str:
        return str(self.folder / self.manifest.shards[number].file)

    def map(self, number: int) -> MappedFile:
        """Raises `UserError` where the shard was changed since the corpus was opened, and OSError."""
        written = check_length(self.folder, self.manifest.shards[number])
        if self._written.setdefault(number, written) != written:
            raise UserError(
                f"{self.name(number)} was written to since it was opened: copy or shard it again, then start again."
            )
        return MappedFile(self.name(number))

    def map_index(self, number: int) -> MappedFile | None:
        """The shard's row index, if it has one; raises `UserError` where it is missing or cut, and OSError."""
        index = self.manifest.shards[number].index
        if index is None:
            return None
        try:
            file = MappedFile(self.folder / index.file)
        except (FileNotFoundError, ValueError):
            check_index_length(self.folder, index)
            raise
        if len(file.data) != index.bytes:
            check_index_length(self.folder, index)
        return file

    def changed(self, number: int) -> bool:
        """Whether the shard was written to, cut or removed since the corpus was opened."""
        try:
            return check_length(self.folder, self.manifest.shards[number]) != self._written.get(number)
        except UserError:
            return True

    def fetch(self, number: int) -> None:
        """Have the shard here; it is."""

    def prefetch(self, number: int, sooner: Collection[Shard]) -> None:
        """The same."""


class RemoteShards:
    """A URL of any protocol that fsspec knows; what is read of a shard is a copy that has its hash.

    Raises:
        UserError: the URL cannot be used, or holds no finished shards.
        DataLost: its store is gone, and has been waited for.
    """

    cached = True

    def __init__(self, url: str, cache: Cache):
        self.cache = cache
        cache.make()
        self._store = Storage(url, REMEDY, cache.outages)
        self.url = self._store.url
        where = f"{self.url}/{MANIFEST}"
        content = self._store.read(MANIFEST)
        if content is None:
            raise UserError(f"{where} cannot be read (there is none): {REMEDY}.")
        self.manifest: Manifest = parse_manifest(content.decode("utf-8", "replace"), where)

    def name(self, number: int) -> str:
        return f"{self.url}/{self.manifest.shards[number].file}"

    def map(self, number: int) -> MappedFile:
        """Raises `UserError` or `DataLost` where the shard cannot be fetched."""
        return self._mapped(self.manifest.shards[number])

    def map_index(self, number: int) -> MappedFile | None:
        """The shard's row index, if it has one; raises as `map`."""
        index = self.manifest.shards[number].index
        return self._mapped(index) if index else None

    def _mapped(self, file: Shard) -> MappedFile:
        while True:
            self._get(file)
            try:
                return MappedFile(self.cache.path(file))
            except FileNotFoundError:  # dropped in between
                continue

    def changed(self, number: int) -> bool:
        """Never: what was fetched had the right hash."""
        return False

    def fetch(self, number: int) -> None:
        """Have the shard in the cache, and its row index; raises as `map`."""
        for file in self.manifest.shards[number].files:
            self._get(file)

    def prefetch(self, number: int, sooner: Collection[Shard]) -> Exception | None:
        """Fetch them while nobody waits, as `Cache.prefetch`; what has gone wrong, if anything."""
        for file in self.manifest.shards[number].files:
            if failure := self.cache.prefetch(file, partial(self._fetch, file), sooner):
                return failure
        return None

    def _get(self, file: Shard) -> None:
        self.cache.get(file, f"{self.url}/{file.file}", partial(self._fetch, file))

    def _fetch(self, file: Shard, path: Path) -> None:
        self._store.fetch_once(file.file, path)


ShardLocation = LocalShards | RemoteShards


def open_location(folder: str | Path, cache: Cache) -> ShardLocation:
    """What opens a folder or a URL."""
    return RemoteShards(str(folder), cache) if "://" in str(folder) else LocalShards(folder)
