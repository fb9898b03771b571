"""Traces a few steps of a running job, on request by a file in its run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from mvlm.errors import first_line
from mvlm.runtime import dist
from mvlm.runtime.log import rank_log

REQUEST = "profile"
"""`echo "5 3" > RUN/profile`: five steps of rank 3; by default 3 steps of rank 0."""
TRACES = "traces"
SELDOM_S = 60.0
"""Between two looks by a rank other than 0: a shared file system may serve thousands."""
STEPS, MOST = 3, 50  # a trace of one step of a large model takes tens of megabytes


class Profiling:
    """Looks for the request when it is made and at log steps, traces the next steps, and never stops a run.

    Args:
        run: gets `traces/step_00000120.rank_00000.json.gz`, for https://ui.perfetto.dev or chrome://tracing.
    """

    def __init__(self, run: Path) -> None:
        self._request, self._folder = run / REQUEST, run / TRACES
        self._profile: Any = None
        self._left, self._looked = 0, -SELDOM_S
        self.look()

    def look(self) -> None:
        """Begin a trace with the next step if one is asked for. Each rank reads it; the one that is named takes it."""
        if dist.rank() and time.monotonic() - self._looked < SELDOM_S:
            return
        self._looked = time.monotonic()
        try:
            words = self._request.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return
        if self._profile:
            return
        try:
            steps, rank = (*map(int, words), *(STEPS, 0)[len(words) :])
            problem = "" if 1 <= steps <= MOST and 0 <= rank < dist.world() else "is out of range"
        except ValueError:
            steps, rank, problem = 0, 0, "cannot be understood"
        if dist.rank() != (0 if problem else rank):
            return
        try:
            self._request.unlink()  # first: a request that cannot be removed would be met for ever
            if problem:
                rank_log.info(
                    f"{self._request} {problem}: write into it how many steps, 1 to {MOST}, and, after a space, "
                    f"the rank, 0 to {dist.world() - 1}."
                )
                return
            self._begin(steps)
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def stepped(self, step: int) -> None:
        """Count a step that has been made; after the last one asked for, write the trace."""
        if not self._profile:
            return
        self._left -= 1
        try:
            if self._left:
                self._profile.step()
            else:
                self._write(step)
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def close(self) -> None:
        """End a trace that the run's own end cuts short; nothing is written."""
        if self._profile:
            self._profile.stop()
            self._profile = None

    def _begin(self, steps: int) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._left, self._began = steps, time.perf_counter()
        everything = lambda step: ProfilerAction.RECORD  # noqa: E731 - steps are named only with a schedule
        self._profile = profile(activities=activities, schedule=everything, record_shapes=True)
        self._profile.start()

    def _write(self, step: int) -> None:
        traced, self._profile = self._profile, None
        traced.stop()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step_{step:08d}.rank_{dist.rank():05d}.json.gz"
        traced.export_chrome_trace(str(path))
        rank_log.info(
            f"Traced up to step {step} in {time.perf_counter() - self._began:.1f} s: open {path} in ui.perfetto.dev."
        )

    def _give_up(self, error: Exception) -> None:
        self._profile = None
        rank_log.warning(f"Tracing failed ({first_line(error)}); the run continues.")
