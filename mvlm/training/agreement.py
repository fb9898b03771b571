"""What the ranks tell each other once a step."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mvlm.runtime import dist
from mvlm.runtime.background import BackgroundSum
from mvlm.runtime.launch import LAUNCHER_DIED

READINGS = 4  # of `AnomalyDetector.report`


class StepFlags(NamedTuple):
    """What one rank reports between two steps; after the exchange, on every rank, how many report it."""

    signalled: int = 0
    orphaned: int = 0
    time_is_up: int = 0
    superseded: int = 0
    gone: int = 0  # the run folder
    written: int = 0
    uploaded: int = 0
    faults: int = 0  # their number
    ready: int = 0  # the next step's data are there, or lost for good
    without_data: int = 0  # for good

    @property
    def reason_to_stop(self) -> str | None:
        if self.signalled:
            return "by a signal"
        if self.orphaned:
            return LAUNCHER_DIED
        return "because the time is nearly up" if self.time_is_up else None


class Agreement:
    """An exchange among the ranks, through host memory, which begins when it is constructed.

    Args:
        reading: this rank's `AnomalyDetector.report` of an earlier step, if one is to be judged.
    """

    def __init__(self, own: StepFlags, reading: tuple[float, ...] | None) -> None:
        self.judges = reading is not None
        numbers = [*map(float, own), *(reading or (0.0,) * READINGS)]
        self._sum = BackgroundSum(torch.tensor(numbers, dtype=torch.float64))

    def wait(self) -> tuple[StepFlags, tuple[float, ...]]:
        """The sums of all ranks' flags and the means of their readings, the same on all."""
        numbers = self._sum.wait().tolist()
        counts, readings = numbers[: len(StepFlags._fields)], numbers[len(StepFlags._fields) :]
        return StepFlags(*map(int, counts)), tuple(reading / dist.world() for reading in readings)
