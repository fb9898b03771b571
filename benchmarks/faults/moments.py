"""The moments at which faults are injected, and what can be seen of a run at them."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults.runs import Attempt

STEP_SECONDS, STARTING_SECONDS = 0.06, 9.0
"""How far into a step or a start a moment may fall, at most; about as long as each takes."""


def moment(attempt: Attempt, draw: Random, starting: bool = False, share: float = 0.5) -> dict[str, Any] | None:
    """Wait for a random moment in the next `share` of what the run has left, or perhaps, if `starting`, in its
    start."""
    done = attempt.run.step()
    if starting and draw.random() < 0.15:
        seconds = draw.uniform(0, STARTING_SECONDS)
        attempt.comes(lambda: time.time() - attempt.began > seconds)
    else:
        step = done + draw.randint(1, max(1, int((attempt.run.steps - done) * share)))
        if not attempt.reaches(step):
            return None
        time.sleep(draw.uniform(0, STEP_SECONDS))
    if attempt.process.poll() is not None:
        return None
    return {
        "step": attempt.run.step(),
        "seconds": round(time.time() - attempt.began, 2),
        "training": bool(attempt.steps()),
    }


def a_rank(attempt: Attempt, draw: Random) -> tuple[int, int] | None:
    """Number and process id of a living rank; None if there is none."""
    found = sorted(attempt.ranks().items())
    return draw.choice(found) if found else None


def launchers(attempt: Attempt) -> list[int]:
    """The ids of `deepspeed` and of the process that it has started, which starts the ranks."""
    others = [pid for pid, rank in attempt.processes().items() if rank is None and pid != attempt.process.pid]
    return [attempt.process.pid, *others]


def partial_checkpoints(attempt: Attempt) -> list[Path]:
    return list(attempt.run.checkpoints.glob("step_*.partial*"))


def whole_checkpoints(attempt: Attempt) -> int:
    return len(list(attempt.run.checkpoints.glob("step_????????")))
