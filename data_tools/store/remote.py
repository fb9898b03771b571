"""The store of a corpus whose place is an fsspec URL."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.store.disk import NO_ROOM
from data_tools.store.storage import PLAN, STATE, Store, say_afresh, sealed, unsealed, whole
from mvlm.data.shards.schema import MANIFEST
from mvlm.errors import UserError

OURS = re.compile(
    r"([A-Za-z0-9_-]+/)?(\d{6}\.(arrow|index)|manifest\.json|quarantine\.jsonl|yield\.(json|txt)|source\.json)"
)
"""What `restart` may remove."""


@contextmanager
def remote_store(url: str) -> Iterator[Store]:
    from fsspec.core import url_to_fs  # seconds to import with some protocols

    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be written ({error}): install what that protocol needs.") from None
    with tempfile.TemporaryDirectory(prefix="mvlm-shards-") as work:
        try:
            yield Remote(files, root.rstrip("/"), url, Path(work))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise UserError(
                    f"No room for a shard of {url} in {Path(work).parent} ({error.strerror}): free space, "
                    "set TMPDIR or give a smaller --shard-mb."
                ) from None
            raise


class Remote:
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
            say_afresh(self._url)
            self.restart()
        self._files.pipe_file(f"{self._root}/{STATE}/{PLAN}", json.dumps(plan).encode())
        names = sorted(name for name in self._names() if name.endswith(".state"))
        states = whole(self._files.cat_file(f"{self._root}/{name}") for name in names)
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

    def seen(self, number: int) -> bytes:
        return unsealed(self._files.cat_file(f"{self._root}/{STATE}/{number:06d}.state"))[1]

    def add_state(self, state: bytes, seen: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{STATE}/{self._count:06d}.state", sealed(state, seen))
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
