"""Where a corpus lies: a folder, or a URL whose shards come through the node's cache."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from mvlm.data.loading.shared_memory import MappedFile
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.outage import Attempts, describe, may_pass
from mvlm.data.shards.schema import (
    MANIFEST,
    Manifest,
    Shard,
    check_index_length,
    check_length,
    parse_manifest,
    read_manifest,
)
from mvlm.errors import UserError

LOOKED_AT = 1000
"""Shards whose lengths are compared with the manifest's when a folder is opened."""


class Folder:
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

    def bring(self, number: int) -> None:
        """Have the shard here; it is."""


class Remote:
    """A URL of any protocol that fsspec knows; what is read of a shard is a copy that has its hash.

    Raises:
        UserError: the URL cannot be used, or holds no finished shards.
        DataLost: its store is gone, and has been waited for.
    """

    cached = True

    def __init__(self, url: str, cache: Cache):
        self.url = url.rstrip("/")
        self.cache = cache
        cache.make()
        self._files: Any = None
        where = f"{self.url}/{MANIFEST}"
        self.manifest: Manifest = parse_manifest(self._read_manifest(where).decode("utf-8", "replace"), where)

    def _read_manifest(self, where: str) -> bytes:
        """Of a store that may be gone for now: a run is often started again by what cannot look whether it is back."""
        with Attempts(where, self.cache.outages) as attempts:
            while True:
                try:
                    return bytes(self._store().cat_file(f"{self._root}/{MANIFEST}"))
                except UserError:
                    raise
                except Exception as error:  # each store raises its own
                    if not (self.cache.outages.patience and may_pass(error)):
                        raise UserError(
                            f"{where} cannot be read ({describe(error)}): give the URL of finished shards, and what "
                            "the store needs for access."
                        ) from None
                    attempts.failed(error)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": None}  # connections are every process's own

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

    def bring(self, number: int) -> None:
        """Have the shard in the cache, and its row index; raises as `map`."""
        for file in self.manifest.shards[number].files:
            self._get(file)

    def bring_ahead(self, number: int, sooner: Collection[Shard]) -> Exception | None:
        """Fetch them while nobody waits, as `Cache.get_ahead`."""
        for file in self.manifest.shards[number].files:
            if failure := self.cache.get_ahead(file, partial(self._fetch, file), sooner):
                return failure
        return None

    def _get(self, file: Shard) -> None:
        self.cache.get(file, f"{self.url}/{file.file}", partial(self._fetch, file))

    def _fetch(self, file: Shard, path: Path) -> None:
        store = self._store()
        store.get_file(f"{self._root}/{file.file}", str(path))

    def _store(self) -> Any:
        if self._files is None:
            from fsspec.core import url_to_fs  # seconds to import with some protocols

            try:
                files, root = url_to_fs(self.url)
            except (ImportError, ValueError) as error:
                raise UserError(f"{self.url} cannot be used ({error}): install what that protocol needs.") from None
            self._root: str = root.rstrip("/")
            self._files = files  # last, since other threads go by it
        return self._files


Place = Folder | Remote


def open_place(folder: str | Path, cache: Cache) -> Place:
    """What opens a folder or a URL."""
    return Remote(str(folder), cache) if "://" in str(folder) else Folder(folder)
