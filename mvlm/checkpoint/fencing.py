"""Numbers the attempts at a run, so that one that was given up but is still alive cannot harm its successor.

The numbers are kept in the run folder and, because the next attempt may be on a node that does not see it, in the
mirror.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from mvlm.checkpoint.folder_group import FolderGroup
from mvlm.checkpoint.layout import ATTEMPTS, Writer
from mvlm.checkpoint.mirror import Mirror
from mvlm.errors import UserError, cannot_write
from mvlm.runtime import dist

Result = TypeVar("Result")


class FencingToken:
    """The next attempt number of a run, claimed by rank 0; all ranks must construct it.

    A claim is a file `attempts/NNNN.json` that only one process can create. An attempt that sees a higher number than
    its own has been superseded: it writes nothing more and ends. Where nodes have run folders of their own, each
    folder gets a copy of the claim; if the claim has gone, so has the run folder.

    Args:
        resumes: whether the attempt resumes one of the run's own checkpoints.
        group: the ranks that see this run folder; None = all.

    Attributes:
        number: from 1 on.
        writer: identifies the checkpoints of this attempt. An attempt that resumes the run's own checkpoint joins the
            chain of the attempt before it; any other, or one that cannot learn that chain, begins a chain.

    Raises:
        UserError: the run folder cannot be written.
    """

    def __init__(
        self, run: Path, mirror: Mirror | None = None, resumes: bool = False, group: FolderGroup | None = None
    ) -> None:
        self._run, self._folder = run, run / ATTEMPTS
        self._mirror = mirror
        self._leads = (group or FolderGroup.of_all()).leads
        self._overtaken = False
        claimed = dist.as_rank_0(lambda: self._tried(lambda: self._claim(resumes)))
        self.writer, self._claim_text = claimed
        self.number = self.writer.attempt
        dist.on_all(lambda: self._tried(self._copy_claim) if self._leads and dist.rank() else None)

    def _tried(self, action: Callable[[], Result]) -> Result:
        try:
            return action()
        except OSError as error:
            raise cannot_write(f"The run folder {self._run}", error, "free some room or set run.dir") from None

    def _claim(self, resumes: bool) -> tuple[Writer, str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        own = secrets.token_hex(8)
        before = self._chain_before() if resumes else None
        chain = before or own
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "world": dist.world(), "at": time.time()}
        text = json.dumps(facts | {"id": own, "chain": chain})
        number = 1 + max(self._numbers_here(), default=0)
        elsewhere = max(self._numbers_in_mirror(), default=0)
        while True:
            try:
                with open(self._path(number), "x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                pass
            else:
                if number > elsewhere:  # lower ones are claimed too, since `superseded` looks for the next number
                    break
            number += 1
        if self._mirror:
            self._mirror.write(claim_name(number), text.encode())
        return Writer(chain, number), text

    def _copy_claim(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(self.number).write_text(self._claim_text, encoding="utf-8")

    def _chain_before(self) -> str | None:
        """The chain of the attempt before this one; None if it is not known."""
        # An empty claim, left by a full disk or a kill, is of an attempt that never began.
        claimed = (number for number in self._numbers_here() if self._path(number).stat().st_size)
        here, there = max(claimed, default=0), max(self._numbers_in_mirror(), default=0)
        if self._mirror and there > here:
            return chain_of(self._mirror.read(claim_name(there)))
        return chain_of(self._path(here).read_bytes()) if here else None

    def is_gone(self) -> bool:
        """Whether the claim no longer exists: cheaper than `is_lost`, and called on the same ranks."""
        return self._leads and not self._path(self.number).exists()

    def is_lost(self) -> bool:
        """Whether the run folder has been removed, moved or replaced since it was claimed.

        Only the ranks that lead a group look, and tell the others; on the others it is False.
        """
        try:
            return self._leads and self._path(self.number).read_text(encoding="utf-8") != self._claim_text
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
            return True

    def superseded(self) -> bool:
        """Whether a later attempt has begun; only rank 0 looks, and tells the others."""
        return dist.rank() == 0 and (self._overtaken or self._path(self.number + 1).exists())

    def superseded_in_mirror(self) -> bool:
        """Whether a later attempt has begun on nodes that do not see the run folder; called on rank 0, in any thread.

        If two attempts claimed the same number at once, it belongs to the one that wrote last.
        """
        if self._mirror and not self._overtaken:
            latest = max(self._numbers_in_mirror(), default=0)
            own = self._mirror.read(claim_name(self.number))
            self._overtaken = latest > self.number or own != self._claim_text.encode()
        return self._overtaken

    def overtaken(self, step: int) -> UserError:
        """The error to raise on all ranks if a later attempt has begun when this one is at `step`."""
        return UserError(
            f"A later attempt at {self._run} has begun, so attempt {self.number} ends at step {step} without writing "
            "more: look at that one, or set another run.dir."
        )

    def lost(self) -> UserError:
        """The error to raise on all ranks if the run folder of any is lost."""
        return UserError(
            f"The run folder {self._run} has been removed, moved or replaced since attempt {self.number} began, which "
            "ends without writing more: move it back to resume from its newest checkpoint, or set another run.dir."
        )

    def is_of_chain(self, number: int) -> bool:
        """Whether an attempt that the mirror knows belongs to the same chain."""
        if number == self.number:
            return True
        claim = self._mirror.read(claim_name(number)) if self._mirror else None
        return chain_of(claim) == self.writer.chain

    def _numbers_in_mirror(self) -> list[int]:
        names = self._mirror.sizes(ATTEMPTS) if self._mirror else {}
        return _numbers(names)

    def _numbers_here(self) -> list[int]:
        return _numbers(path.name for path in self._folder.glob("*.json"))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04d}.json"


def claim_name(number: int) -> str:
    """The name of an attempt's claim in the mirror."""
    return f"{ATTEMPTS}/{number:04d}.json"


def chain_of(claim: bytes | None) -> str | None:
    """The chain that a claim names; None if the claim is missing or damaged."""
    try:
        return str(json.loads(claim or b"")["chain"])
    except (ValueError, TypeError, KeyError):
        return None


def _numbers(names: Iterable[str]) -> list[int]:
    stems = (Path(name).stem for name in names)
    return [int(stem) for stem in stems if stem.isdecimal()]
