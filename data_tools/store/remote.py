"""The store of a corpus that is written to an fsspec URL: each shard when it is finished, the manifests last."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvlm.data.shards.schema import MANIFEST
from mvlm.errors import UserError
from mvlm.runtime.storage import NO_ROOM, Storage

from ..part import PartManifest
from .store import PLAN, STATE, Store

REMEDY = "check --out and what is needed to write to it, and run the same command again"


@contextmanager
def open_url(url: str, shared: bool = False, above: Path | None = None) -> Iterator[Store]:
    """Yield the store for a URL, whose shards are made in a temporary folder; `shared` as for a folder.

    Args:
        above: where that folder is made; None = in TMPDIR.
    """
    storage = Storage(url, REMEDY)
    with tempfile.TemporaryDirectory(prefix="mvlm-shards-", dir=above) as work:
        try:
            yield RemoteStore(storage, Path(work), shared)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise UserError(
                    f"No room for a shard of {url} in {tempfile.gettempdir()} ({error.strerror}): free space, "
                    "set TMPDIR or give a smaller --shard-mb."
                ) from None
            raise


class RemoteStore(Store):
    """A prefix of an object store or a remote file system. Nothing keeps two writers of one URL apart."""

    def __init__(self, storage: Storage, work: Path, shared: bool = False) -> None:
        super().__init__(storage.url, work, shared)
        self._storage = storage

    def begin(self, plan: dict[str, Any] | None) -> list[PartManifest]:
        held = self.sizes()
        if PLAN not in held:
            if any(name.rpartition("/")[2] == MANIFEST for name in held):
                raise UserError(f"{self._out} already holds shards: delete it or give another --out.")
            if held:
                raise UserError(f"{self._out} holds other files: give an --out that is empty or does not exist.")
        return super().begin(plan)

    @contextmanager
    def for_task(self) -> Iterator[Store]:
        above = self.work if self.work.is_dir() else None  # on this machine: removed with it, even after a kill
        with open_url(self._storage.url, above=above) as store:
            yield store

    def keep(self, name: str) -> None:
        path = self.work / name
        self._storage.upload(path, name)
        if self._storage.size(name) != path.stat().st_size:
            raise UserError(f"{self._out}/{name} did not arrive in full: run the same command again.")
        path.unlink()

    def local(self, name: str) -> Path:
        path = self.work / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage.download(name, path)
        return path

    def reject(self, name: str) -> str:
        beside = Storage(f"{self._out}.{name}", REMEDY)
        beside.upload(self.work / name, "")
        return beside.url.rpartition("/")[2]

    def finish(self, names: list[str]) -> None:
        for name in names:
            self.keep(name)
        for name in sorted(self.sizes()):
            if name.startswith(f"{STATE}/") or name.endswith(".partial"):
                self.delete(name)

    def sizes(self) -> dict[str, int]:
        return self._storage.sizes()

    def read(self, name: str) -> bytes | None:
        return self._storage.read(name)

    def write(self, name: str, content: bytes) -> None:
        self._storage.write(name, content)

    def delete(self, name: str) -> None:
        self._storage.delete(name)
