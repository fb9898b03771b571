"""Images that a run could not use and replaced: listed once each, counted, and too many of them end the run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mvlm.data.samples.dataset import Fault
from mvlm.errors import UserError, cannot_write
from mvlm.runtime import dist
from mvlm.training.health.lists import read_listed

QUARANTINE = "quarantine.jsonl"

FIRST_SAMPLES = 10_000
"""A share is taken of this many samples at least: one bad image among the first hundred says little."""


class Quarantine:
    """The list in the run folder, alike on every rank; what an earlier attempt listed counts on.

    Args:
        tolerance: images that may be bad, as a share of the samples drawn or, from 1 on, as a number.
        rows: of the data, of which no more than all can be drawn.
    """

    def __init__(self, run: Path, tolerance: float, rows: int) -> None:
        self._path = run / QUARANTINE
        self._tolerance, self._all_rows = tolerance, rows
        self._rows = set(read_listed(self._path, "row"))

    def __len__(self) -> int:
        """Different images listed."""
        return len(self._rows)

    def add(self, own: Sequence[Fault], samples_seen: int) -> None:
        """List what is new among all ranks' faults; all ranks must call, rank 0 writes.

        Raises:
            UserError: on every rank, where the list cannot be written or has become longer than the tolerance.
        """
        met = sorted((fault for faults in dist.gather_objects(list(own)) for fault in faults), key=_place)
        new = list({fault.row: fault for fault in reversed(met) if fault.row not in self._rows}.values())[::-1]
        failure = self._write(new) if dist.rank() == 0 else None
        if failure := dist.broadcast_object(failure):
            raise failure
        self._rows.update(fault.row for fault in new)
        drawn = min(samples_seen, self._all_rows)
        allowed = self._tolerance if self._tolerance >= 1 else self._tolerance * max(drawn, FIRST_SAMPLES)
        if new and len(self) > allowed:
            raise UserError(
                f"{len(self)} images cannot be used, more than data.tolerance = {self._tolerance} allows after "
                f"{drawn} samples, the last of them {new[-1]}; all stand in {self._path}: "
                "mend those shards, or raise data.tolerance."
            )

    def _write(self, faults: list[Fault]) -> UserError | None:
        if not faults:
            return None
        lines = [json.dumps(asdict(fault) | {"at": time.time()}) + "\n" for fault in faults]
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return cannot_write(str(self._path), error, "free some room and start again")
        return None


def _place(fault: Fault) -> tuple[int, int]:
    return fault.position, fault.row
