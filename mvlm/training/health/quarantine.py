"""What a run leaves out, listed in its folder: images that cannot be used, and batches at which it met an anomaly."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mvlm.checkpoint.description import QUARANTINE, SKIPPED
from mvlm.data.loading.sampler import Sampler
from mvlm.data.samples.dataset import TAKEN_DOWN, Fault
from mvlm.data.shards.corpus import UnreadableRow
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError, cannot_write
from mvlm.runtime import dist
from mvlm.runtime.files import append_durably
from mvlm.runtime.wording import counted
from mvlm.training.health.anomaly import Anomaly

Found = TypeVar("Found")

FIRST_SAMPLES = 10_000
"""A share is taken of at least this many samples: one bad image among the first hundred says little."""


class Quarantine:
    """Images that a run could not use and replaced, the same on every rank; those of earlier attempts count too.

    Args:
        tolerance: images that may be bad, as a share of the samples drawn or, from 1 on, as a number.
        rows: of the data; no more samples than that count as drawn.

    Attributes:
        excess: the error to raise, after the steps made have been saved, if the list exceeds the tolerance.
    """

    def __init__(self, run: Path, tolerance: float, rows: int) -> None:
        self._path = run / QUARANTINE
        self._tolerance, self._all_rows = tolerance, rows
        self._known = set(_read(self._path, _identity))
        self.excess: UserError | None = None

    def __len__(self) -> int:
        """Different images listed."""
        return len(self._known)

    def add(self, own: Sequence[Fault], samples_seen: int) -> None:
        """List what is new among all ranks' faults, once each; all ranks must call.

        Raises:
            UserError: on every rank, if the list cannot be written.
        """
        mine = [fault for fault in own if fault.reason != TAKEN_DOWN]
        met = sorted((fault for faults in dist.gather_objects(mine) for fault in faults), key=_place)
        found = {_identity(asdict(fault)): fault for fault in reversed(met)}
        new = [fault for identity, fault in reversed(found.items()) if identity not in self._known]
        _append(self._path, [asdict(fault) | {"at": time.time()} for fault in new])
        self._known |= found.keys()
        drawn = min(samples_seen, self._all_rows)
        allowed = self._tolerance if self._tolerance >= 1 else self._tolerance * max(drawn, FIRST_SAMPLES)
        if new and len(self) > allowed:
            self.excess = UserError(
                f"{counted(len(self), 'image')} cannot be used, more than data.tolerance = {self._tolerance} allows "
                f"after {drawn} samples, the last of them {new[-1]}; all are listed in {self._path}: "
                "repair those shards, or raise data.tolerance."
            )


class Skipped:
    """Stream positions at which a batch to be left out begins, on every rank.

    The list outlives a kill between a roll-back and the next checkpoint, so the run that is resumed leaves out the
    same.

    Args:
        positions: known from the checkpoint, of the batches before it.
        limit: batches that may be left out.
        begin, batch: samples seen by that checkpoint, and the global batch from there on: if it has changed, the
            coming batches that hold listed samples are left out instead.
    """

    def __init__(self, run: Path, positions: tuple[int, ...], limit: int, begin: int, batch: int) -> None:
        self.path, self._limit = run / SKIPPED, limit
        self.positions = set(positions)
        for first, count in _read(self.path, lambda line: (int(line["position"]), len(line["samples"]))):
            if first >= begin:
                self.positions |= set(range(first - (first - begin) % batch, first + count, batch))

    def positions_before(self, position: int) -> tuple[int, ...]:
        return tuple(sorted(p for p in self.positions if p < position))

    def add(self, anomaly: Anomaly, global_batch: int, draws: Sampler, mixture: Mixture) -> None:
        """Leave a batch out from now on, and list its samples; all ranks must call.

        Raises:
            UserError: on every rank, if the list cannot be written or has become longer than the limit.
        """
        self.positions.add(anomaly.position)
        drawn = np.arange(anomaly.position, anomaly.position + global_batch)
        samples = dist.as_rank_0(lambda: [_described(mixture, number) for number in draws(drawn)[0].tolist()])
        found = {"step": anomaly.step, "position": anomaly.position, "reason": anomaly.reason}
        _append(self.path, [found | {"at": time.time(), "samples": samples}])
        if len(self.positions) > self._limit:
            raise UserError(
                f"At step {anomaly.step} {anomaly.reason}, and train.max_skipped = {self._limit} batches have been "
                f"left out already: look at the samples listed in {self.path}, or lower optim.lr, or raise "
                "train.max_skipped."
            )


def _described(mixture: Mixture, number: int) -> dict[str, str]:
    """The row of a number that was drawn, which may be a pair's."""
    try:
        row, _ = mixture.numbers.visit(number)
    except UnreadableRow as error:
        return {"where": error.where, "key": error.key}
    return {"where": mixture.where(row), "key": mixture.key(row)}


def _place(fault: Fault) -> tuple[int, int]:
    return fault.position, fault.row


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    """One JSON object a line, by rank 0; all ranks must call, and raise if it fails."""

    def append() -> None:
        try:
            if lines:
                append_durably(path, "".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise cannot_write(str(path), error) from None

    dist.as_rank_0(append)


def _identity(line: dict[str, Any]) -> tuple[int, str]:
    """Of an image, with its key, since rows of another stage's data have the same numbers."""
    return int(line["row"]), str(line["key"])


def _read(path: Path, wanted: Callable[[dict[str, Any]], Found]) -> list[Found]:
    """What is wanted of every whole line, the same on all ranks; all must call.

    A last line that a kill cut off is ignored: it had not been acted upon, or will be met again.

    Raises:
        UserError: on every rank, if what lies there cannot be read.
    """

    def read() -> list[Found]:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}): move away what lies there.") from None
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found.append(wanted(json.loads(line)))
        return found

    return dist.as_rank_0(read)
