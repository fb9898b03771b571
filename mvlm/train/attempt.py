"""Attempts at a run are numbered, so that one which was given up, and lives on, cannot harm the one after it.

They are numbered in the run folder and, because the next may be made on a node that does not see it, in the mirror.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path

from mvlm import dist
from mvlm.errors import UserError
from mvlm.train.mirror import Mirror

ATTEMPTS = "attempts"


class Attempt:
    """The next number of a run, claimed by rank 0; all ranks must construct it.

    A claim is a file `attempts/NNNN.json` that only one process can create. Whoever sees a higher number than
    its own has been superseded: it writes nothing more and ends.

    Raises:
        UserError: the run folder cannot be written.
    """

    def __init__(self, run: Path, mirror: Mirror | None = None) -> None:
        self._folder = run / ATTEMPTS
        self._mirror = mirror
        self._overtaken = False
        claimed: int | UserError = 0
        if dist.rank() == 0:
            try:
                claimed = self._claim()
            except OSError as error:
                claimed = UserError(f"The run folder {run} cannot be written ({error}): free some room or set run.dir.")
            except UserError as error:
                claimed = error
        claimed = dist.broadcast_object(claimed)
        if isinstance(claimed, UserError):
            raise claimed
        self.number = claimed

    def _claim(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "world": dist.world(), "at": time.time()}
        self._claim_text = json.dumps(facts | {"id": secrets.token_hex(8)})
        number = 1 + max((int(path.stem) for path in self._folder.glob("[0-9]*.json")), default=0)
        elsewhere = max(self._numbers_in_mirror(), default=0)
        while True:
            try:
                with open(self._path(number), "x", encoding="utf-8") as file:
                    file.write(self._claim_text)
            except FileExistsError:
                pass
            else:
                if number > elsewhere:  # those below are claimed too: an attempt looks for the number after its own
                    break
            number += 1
        if self._mirror:
            self._mirror.write(_name(number), self._claim_text.encode())
        return number

    def superseded(self) -> bool:
        """Whether a later attempt has begun; asked by rank 0, which tells the others."""
        return dist.rank() == 0 and (self._overtaken or self._path(self.number + 1).exists())

    def superseded_in_mirror(self) -> bool:
        """Whether a later attempt has begun on nodes that do not see the run folder; asked by rank 0, in any thread.

        Of two that have claimed a number at the same time, the one that wrote last has it.
        """
        if self._mirror and not self._overtaken:
            latest = max(self._numbers_in_mirror(), default=0)
            own = self._mirror.read(_name(self.number))
            self._overtaken = latest > self.number or own != self._claim_text.encode()
        return self._overtaken

    def _numbers_in_mirror(self) -> list[int]:
        names = self._mirror.sizes(ATTEMPTS) if self._mirror else {}
        stems = (Path(name).stem for name in names)
        return [int(stem) for stem in stems if stem.isdecimal()]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04d}.json"


def _name(number: int) -> str:
    return f"{ATTEMPTS}/{number:04d}.json"
