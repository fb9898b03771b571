"""Attempts at a job: what their exit codes mean, and whether another is worth making."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mvlm.errors import ExitCode

FINAL = (ExitCode.DONE, ExitCode.MISTAKE, ExitCode.USAGE)  # another attempt would only repeat them
FRUITLESS = 3  # restarts in a row without a new step, after which another would only repeat them


@dataclass
class JobAttempt:
    number: int
    started: float  # seconds since the epoch
    ended: float | None = None
    exit_code: int | None = None
    step: int | None = None  # the newest that the run had made when it ended


def shell_code(returncode: int) -> int:
    """The exit code of a process as a shell gives it: 128 and the number of the signal that killed it."""
    return returncode if returncode >= 0 else 128 - returncode


def is_stuck(steps: Sequence[int]) -> bool:
    """Whether `FRUITLESS` restarts in a row have made no new step, given the newest step after each attempt."""
    return len(steps) > FRUITLESS and max(steps[-FRUITLESS:]) <= max(steps[:-FRUITLESS])


def describe_stuck(step: int | str) -> str:
    """What becomes of a stuck job whose newest step this is."""
    return (
        f"{FRUITLESS} restarts in a row have made no step beyond {step}, so the job ends: see how its logs end, and "
        "submit it again once that is fixed"
    )


def describe_exit(code: int | None) -> str:
    """An exit code in words that follow "attempt 3"."""
    words: dict[int | None, str] = {
        None: "did not end",
        ExitCode.DONE: "is done",
        ExitCode.REQUEUE: "was preempted, everything saved",
    }
    return words.get(code, f"failed with exit code {code}")


def describe_attempt(attempt: JobAttempt, running: bool) -> str:
    """Such as "attempt 2 runs (3 min 20 s)" or "attempt 1 was preempted, everything saved (9 min 41 s)".

    Args:
        running: the job runs, and so does this attempt if it has not ended.
    """
    runs = running and attempt.ended is None
    words = f"attempt {attempt.number} {'runs' if runs else describe_exit(attempt.exit_code)}"
    if not runs and attempt.ended is None:
        return words
    taken = max(0.0, (attempt.ended or time.time()) - attempt.started)  # by the clocks of up to two hosts
    minutes, seconds = divmod(round(taken), 60)
    return f"{words} ({minutes} min {seconds} s)"
