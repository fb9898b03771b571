"""What a run leaves out, listed in its folder: images that cannot be used, and batches at which it met an anomaly."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mvlm.checkpoint.description import SKIPPED
from mvlm.data.loading.sampler import Sampler
from mvlm.data.samples.dataset import TAKEN_DOWN, Fault
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError, cannot_write
from mvlm.runtime import dist
from mvlm.runtime.files import append_durably
from mvlm.training.health.anomaly import Anomaly

QUARANTINE = "quarantine.jsonl"

FIRST_SAMPLES = 10_000
"""A share is taken of this many samples at least: one bad image among the first hundred says little."""


class Quarantine:
    """Images that a run could not use and replaced, alike on every rank; what an earlier attempt listed counts on.

    Args:
        tolerance: images that may be bad, as a share of the samples drawn or, from 1 on, as a number.
        rows: of the data, of which no more than all can be drawn.
    """

    def __init__(self, run: Path, tolerance: float, rows: int) -> None:
        self._path = run / QUARANTINE
        self._tolerance, self._all_rows = tolerance, rows
        self._rows = set(_read(self._path, "row"))

    def __len__(self) -> int:
        """Different images listed."""
        return len(self._rows)

    def add(self, own: Sequence[Fault], samples_seen: int) -> None:
        """List what is new among all ranks' faults, once each; all ranks must call.

        Raises:
            UserError: on every rank, where the list cannot be written or has become longer than the tolerance.
        """
        mine = [fault for fault in own if fault.reason != TAKEN_DOWN]
        met = sorted((fault for faults in dist.gather_objects(mine) for fault in faults), key=_place)
        new = list({fault.row: fault for fault in reversed(met) if fault.row not in self._rows}.values())[::-1]
        _append(self._path, [asdict(fault) | {"at": time.time()} for fault in new])
        self._rows.update(fault.row for fault in new)
        drawn = min(samples_seen, self._all_rows)
        allowed = self._tolerance if self._tolerance >= 1 else self._tolerance * max(drawn, FIRST_SAMPLES)
        if new and len(self) > allowed:
            raise UserError(
                f"{len(self)} images cannot be used, more than data.tolerance = {self._tolerance} allows after "
                f"{drawn} samples, the last of them {new[-1]}; all stand in {self._path}: "
                "mend those shards, or raise data.tolerance."
            )


class Skipped:
    """Stream positions at which a batch to be left out begins, on every rank.

    The list outlives a kill between a roll-back and the next checkpoint, so the run that is resumed leaves out the
    same.

    Args:
        positions: known from the checkpoint.
        limit: batches that may be left out.
    """

    def __init__(self, run: Path, positions: tuple[int, ...], limit: int) -> None:
        self.path, self._limit = run / SKIPPED, limit
        self.positions = {*positions, *_read(self.path, "position")}

    def positions_before(self, position: int) -> tuple[int, ...]:
        return tuple(sorted(p for p in self.positions if p < position))

    def add(self, anomaly: Anomaly, global_batch: int, draws: Sampler, mixture: Mixture) -> None:
        """Leave a batch out from now on, and write down its samples; all ranks must call.

        Raises:
            UserError: on every rank, where the list cannot be written or has become longer than the limit.
        """
        self.positions.add(anomaly.position)
        rows = (
            draws(np.arange(anomaly.position, anomaly.position + global_batch))[0].tolist() if dist.rank() == 0 else ()
        )
        samples = [{"where": mixture.where(row), "key": mixture.key(row)} for row in rows]
        found = {"step": anomaly.step, "position": anomaly.position, "reason": anomaly.reason}
        _append(self.path, [found | {"at": time.time(), "samples": samples}])
        if len(self.positions) > self._limit:
            raise UserError(
                f"At step {anomaly.step} {anomaly.reason}, and train.max_skipped = {self._limit} batches have been "
                f"left out already: look at the samples listed in {self.path}, or lower optim.lr, or raise "
                "train.max_skipped."
            )


def _place(fault: Fault) -> tuple[int, int]:
    return fault.position, fault.row


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    """One JSON object a line, by rank 0; all ranks must call, and raise where it fails."""

    def append() -> None:
        try:
            if lines:
                append_durably(path, "".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise cannot_write(str(path), error, "free some room and start again") from None

    dist.as_rank_0(append)


def _read(path: Path, key: str) -> list[int]:
    """The number under `key` of every whole line, the same on all ranks, which must all call.

    A last line that a kill cut off is left out: it had not been acted upon, or will be met again.

    Raises:
        UserError: on every rank, where what lies there cannot be read.
    """

    def read() -> list[int]:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}): move away what lies there.") from None
        return [number for line in lines if (number := _number(line, key)) is not None]

    return dist.as_rank_0(read)


def _number(line: str, key: str) -> int | None:
    try:
        return int(json.loads(line)[key])
    except (ValueError, KeyError, TypeError):
        return None
