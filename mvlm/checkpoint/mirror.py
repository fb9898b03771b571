"""A run's mirror: its checkpoints at an fsspec URL, for nodes that share no disk and for disks that do not last.

An object store can neither rename nor append. So a checkpoint lies in a folder of its own attempt,
`checkpoints/step_N.attempt-A`, where no other attempt ever writes, and is whole once its index.json, which is uploaded
last, is there. `checkpoints/latest` holds the newest one's name, for people and for copying the mirror into a run
folder, and `checkpoints/best` that of the best. Beside them lie `attempts/NNNN.json` and the run's small files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mvlm.checkpoint.description import DESCRIPTION
from mvlm.checkpoint.layout import BEST, CHECKPOINTS, EMA, INDEX, MOMENTS, STATE, STEP, WEIGHTS, Entry, step_name
from mvlm.checkpoint.prune import lineage, to_keep
from mvlm.config.schema import Checkpoint
from mvlm.errors import UserError
from mvlm.runtime.storage import Storage

FILES = re.compile(
    rf"({WEIGHTS}|{MOMENTS}|{EMA})-\d{{5}}-of-\d{{5}}\.safetensors|{re.escape(STATE)}|{DESCRIPTION.pattern}"
)


class MirrorPath(NamedTuple):
    """A checkpoint in the mirror, by the attempt that uploaded it."""

    attempt: int
    step: int

    def path(self, file: str = "") -> str:
        return f"{CHECKPOINTS}/{step_name(self.step)}.attempt-{self.attempt}/{file}".rstrip("/")


class Mirror(Storage):
    """What the URL holds of a run. All methods raise UserError when it fails for good."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "check checkpoint.mirror and what is needed to reach it")

    def history(self) -> list[MirrorPath]:
        """The whole checkpoints, newest first, without those that a later attempt discarded by going back."""
        sizes = self.sizes(CHECKPOINTS)
        return lineage(remote for remote in _saved(sizes) if remote.path(INDEX) in sizes)

    def best(self) -> str:
        """The name of the best checkpoint's folder, "" if there is none."""
        return (self.read(f"{CHECKPOINTS}/{BEST}") or b"").decode(errors="replace")

    def prune(self, newest: MirrorPath, config: Checkpoint, is_own: Callable[[int], bool]) -> None:
        """Delete what the run's own attempts left half, or saved before `newest` and need not keep, but not the best.

        Args:
            is_own: whether an attempt belongs to the calling attempt's chain.
        """
        sizes = self.sizes(CHECKPOINTS)
        saved = sorted(_saved(sizes))
        attempts = {remote.attempt for remote in saved if remote.attempt <= newest.attempt}
        own = set(filter(is_own, attempts))
        whole = [p for p in saved if p.attempt in own and p.path(INDEX) in sizes and p.step <= newest.step]
        best = self.best()
        kept = [newest, *to_keep(whole, config), *(p for p in whole if Path(p.path()).name == best)]
        for remote in saved:
            beyond = remote.path(INDEX) in sizes and remote.step > newest.step
            if remote.attempt in own and not beyond and remote not in kept:
                if remote.path(INDEX) in sizes:  # first: what is half deleted must not look whole
                    self.delete(remote.path(INDEX))
                self.delete(remote.path())


def read_entries(index: bytes, where: str) -> list[Entry]:
    """The files that an index.json names, wherever it comes from.

    Raises:
        one of UNREADABLE: it is damaged.
        UserError: it names a file that no checkpoint has, and that could be written anywhere.
    """
    entries = [Entry(**entry) for entry in json.loads(index)["files"]]
    for entry in entries:
        if not isinstance(entry.file, str) or not FILES.fullmatch(entry.file):
            raise UserError(
                f"{where} names {entry.file!r}, which is not a file of a checkpoint: do not trust that place."
            )
    if STATE not in (entry.file for entry in entries):
        raise ValueError(f"it does not name {STATE}")
    return entries


def _saved(sizes: dict[str, int]) -> set[MirrorPath]:
    folders = {name.split("/")[1] for name in sizes if name.count("/") == 2}
    found = filter(None, map(STEP.fullmatch, folders))
    return {MirrorPath(attempt=int(match[2]), step=int(match[1])) for match in found if match[2]}
