"""Reasons to stop before the last step, as one rank knows them. Imports nothing heavy: it listens from the start."""

from __future__ import annotations

import itertools
import os
import signal
import time
from types import FrameType

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
LAUNCHERS = ("deepspeed", "torch.distributed.run", "torchrun")
MARGIN_SHARE, MARGIN_SECONDS = 0.05, 60.0
"""Share of the time limit, and its maximum, that is kept for ending, besides three steps, since the ranks hear of it a
step later, and two checkpoints."""


class StopRequests:
    """Listens for SIGTERM and SIGUSR1, and watches the launcher and the clock.

    A signal to a launcher does not reach its ranks: `deepspeed` dies of it and leaves them training. So each rank
    remembers the processes that started it and counts the death of one as a request to stop.
    """

    def __init__(self) -> None:
        self.signalled = False
        for number in SIGNALS:
            signal.signal(number, self._handle)
        self._launchers = launchers()
        self._began = time.monotonic()
        self.limit_time(0.0)

    def limit_time(self, minutes: float) -> None:
        """Limit the time, from when this was constructed; 0 = until SLURM_JOB_END_TIME if SLURM set it, else never."""
        end = float(os.environ.get("SLURM_JOB_END_TIME") or 0)
        until_end = end - time.time() + time.monotonic() - self._began if end else 0.0
        seconds = 60 * minutes or until_end
        self._limited = bool(seconds)
        self._end = self._began + seconds
        self._margin = min(MARGIN_SECONDS, MARGIN_SHARE * seconds)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def orphaned(self) -> bool:
        """Whether a process that launched this rank has died."""
        return not all(map(_is_alive, self._launchers))

    def launcher_ends_all_ranks(self) -> bool:
        """Whether this rank has one of the launchers, which end all ranks as soon as the first ends."""
        return any(map(_is_program_of_a_launcher, self._launchers))

    def time_is_up(self, step_seconds: float, save_seconds: float, evaluation_seconds: float) -> bool:
        """Whether the time left is needed for ending.

        Args:
            step_seconds, save_seconds: the longest that a step and a checkpoint have taken.
            evaluation_seconds: the same for an evaluation, if one is about to come.
        """
        left = self._end - time.monotonic()
        return self._limited and left < self._margin + 3 * step_seconds + 2 * save_seconds + evaluation_seconds


def launchers() -> list[psutil.Process]:
    """This rank's parent and, above it, the launcher's processes; empty without one."""
    if "RANK" not in os.environ:
        return []
    above = [process for process in psutil.Process().parents() if process.pid > 1]
    return [*above[:1], *itertools.takewhile(_is_launcher, above[1:])]


def _is_launcher(process: psutil.Process) -> bool:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(name in words for name in LAUNCHERS)


def _is_program_of_a_launcher(process: psutil.Process) -> bool:
    """Judged by its program alone, since a rank's own arguments, such as --deepspeed_config, may follow."""
    try:
        program = next((word for word in process.cmdline()[1:] if not word.startswith("-")), "")
    except psutil.Error:
        return False
    return os.path.basename(program).startswith(LAUNCHERS)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
