"""Attempts at a run are numbered, so that one which was given up, and lives on, cannot harm the one after it."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from mvlm import dist
from mvlm.errors import UserError

ATTEMPTS = "attempts"


class Attempt:
    """The next number of a run, claimed by rank 0; all ranks must construct it.

    A claim is a file `attempts/NNNN.json` that only one process can create. Whoever sees a higher number than
    its own has been superseded: it writes nothing more and ends.

    Raises:
        UserError: the run folder cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / ATTEMPTS
        claimed: int | str = 0
        if dist.rank() == 0:
            try:
                claimed = self._claim()
            except OSError as error:
                claimed = f"The run folder {run} cannot be written ({error}): free some room or set run.dir."
        claimed = dist.broadcast_object(claimed)
        if isinstance(claimed, str):
            raise UserError(claimed)
        self.number = claimed

    def _claim(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        facts = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "world": dist.world(), "at": time.time()})
        number = 1 + max((int(path.stem) for path in self._folder.glob("[0-9]*.json")), default=0)
        while True:
            try:
                with open(self._path(number), "x", encoding="utf-8") as file:
                    file.write(facts)
                return number
            except FileExistsError:
                number += 1

    def superseded(self) -> bool:
        """Whether a later attempt has begun; asked by rank 0, which tells the others."""
        return dist.rank() == 0 and self._path(self.number + 1).exists()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04d}.json"
