"""A run's second place: checkpoints at an fsspec URL, for nodes that share no disk and disks that do not last.

An object store can neither rename nor append. So a checkpoint lies in a folder of its own attempt,
`checkpoints/step_N.attempt-A`, where no other attempt ever writes, and is whole when its index.json, which comes last,
is there. `checkpoints/latest` holds the newest one's name, for people and for who copies the mirror into a run folder.
Beside them lie `attempts/NNNN.json` and the run's small files.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from mvlm.checkpoint.description import DESCRIPTION
from mvlm.checkpoint.layout import CHECKPOINTS, EMA, INDEX, MOMENTS, STEP, WEIGHTS, Entry, step_name
from mvlm.checkpoint.prune import lineage, to_keep
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError

PAUSES_S = (1.0, 4.0, 16.0)  # before another try
STATE = "state.json"
FILES = re.compile(
    rf"({WEIGHTS}|{MOMENTS}|{EMA})-\d{{5}}-of-\d{{5}}\.safetensors|{re.escape(STATE)}|{DESCRIPTION.pattern}"
)

Answer = TypeVar("Answer")


class Place(NamedTuple):
    """A checkpoint in the mirror, by the attempt that uploaded it."""

    attempt: int
    step: int

    def path(self, file: str = "") -> str:
        return f"{CHECKPOINTS}/{step_name(self.step)}.attempt-{self.attempt}/{file}".rstrip("/")


class Mirror:
    """A prefix of an object store or of any file system that fsspec knows; for several threads at once.

    What fails is tried again, with growing pauses. All methods raise UserError when it fails for good.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs  # seconds to import with some protocols

        self.url = url.rstrip("/")
        try:
            self._files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"checkpoint.mirror = {url} cannot be used ({error}): install what it needs.") from None
        self._root = root.rstrip("/")

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file below a folder, by path from the mirror's root."""

        def find() -> dict[str, int]:
            self._files.invalidate_cache()
            try:
                found = self._files.find(f"{self._root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
            return {path[len(self._root) + 1 :]: int(facts["size"]) for path, facts in found.items()}

        return self._tried(folder, "listed", find)

    def read(self, name: str) -> bytes | None:
        """A small file's content; None when there is none."""

        def cat() -> bytes | None:
            try:
                return self._files.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None

        return self._tried(name, "read", cat)

    def write(self, name: str, content: bytes) -> None:
        def pipe() -> None:
            self._make_parent(name)
            self._files.pipe_file(f"{self._root}/{name}", content)

        self._tried(name, "written", pipe)

    def upload(self, file: Path, name: str) -> None:
        def put() -> None:
            self._make_parent(name)
            self._files.put_file(str(file), f"{self._root}/{name}")

        self._tried(name, f"made of {file}", put)

    def download(self, name: str, file: Path) -> None:
        """Leaves no file where there is none to fetch."""

        def get() -> None:
            try:
                self._files.get_file(f"{self._root}/{name}", str(file))
            except FileNotFoundError:
                file.unlink(missing_ok=True)

        self._tried(name, f"fetched into {file.parent}", get)

    def history(self) -> list[Place]:
        """The whole checkpoints, newest first, without those that a later attempt has gone back on."""
        sizes = self.sizes(CHECKPOINTS)
        return lineage(place for place in _places(sizes) if place.path(INDEX) in sizes)

    def prune(self, newest: Place, config: Checkpoint, is_own: Callable[[int], bool]) -> None:
        """Delete what the run's own attempts have left half, or saved up to `newest` and need not keep.

        Args:
            is_own: whether an attempt belongs to the chain of the one that calls.
        """
        sizes = self.sizes(CHECKPOINTS)
        places = sorted(_places(sizes))
        attempts = {place.attempt for place in places if place.attempt <= newest.attempt}
        own = set(filter(is_own, attempts))
        whole = [p for p in places if p.attempt in own and p.path(INDEX) in sizes and p.step <= newest.step]
        kept = to_keep(whole, config)
        for place in places:
            beyond = place.path(INDEX) in sizes and place.step > newest.step
            if place.attempt in own and not beyond and place not in kept:
                if place.path(INDEX) in sizes:  # first: what is half deleted must not look whole
                    self._delete(place.path(INDEX))
                self._delete(place.path())

    def _delete(self, name: str) -> None:
        def delete() -> None:
            self._files.invalidate_cache()
            if self._files.exists(f"{self._root}/{name}"):
                self._files.rm(f"{self._root}/{name}", recursive=True)

        self._tried(name, "deleted", delete)

    def _make_parent(self, name: str) -> None:
        self._files.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)

    def _tried(self, name: str, done: str, action: Callable[[], Answer]) -> Answer:
        for pause in (*PAUSES_S, None):
            try:
                return action()
            except Exception as error:  # each kind of store has its own
                if pause is None or isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    raise UserError(
                        f"{self.url}/{name} cannot be {done} ({reason}): see that checkpoint.mirror and what it needs "
                        "to be reached are right."
                    ) from None
                time.sleep(pause)
        raise AssertionError("unreachable")


def read_entries(index: bytes, where: str) -> list[Entry]:
    """The files that an index.json names, wherever it comes from.

    Raises:
        one of UNREADABLE: it is damaged.
        UserError: it names what no checkpoint has, and would be written where it must not.
    """
    entries = [Entry(**entry) for entry in json.loads(index)["files"]]
    for entry in entries:
        if not isinstance(entry.file, str) or not FILES.fullmatch(entry.file):
            raise UserError(f"{where} names {entry.file!r}, which is no file of a checkpoint: do not trust that place.")
    if STATE not in (entry.file for entry in entries):
        raise ValueError(f"it does not name {STATE}")
    return entries


def _places(sizes: dict[str, int]) -> set[Place]:
    folders = {name.split("/")[1] for name in sizes if name.count("/") == 2}
    found = filter(None, map(STEP.fullmatch, folders))
    return {Place(attempt=int(match[2]), step=int(match[1])) for match in found if match[2]}
