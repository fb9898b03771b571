"""What is said of a job's attempts and steps, the same on every back-end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.record import METRICS, Attempt, Record, last_training_line
from cluster.watch import describe_exit


def describe_attempt(attempt: Attempt, is_watched: bool) -> str:
    """Such as "attempt 2 runs (3 min 20 s)" or "attempt 1 was preempted, everything saved (9 min 41 s)".

    Args:
        is_watched: somebody is there to note its end, so that without one it runs.
    """
    runs = is_watched and attempt.ended is None
    words = f"attempt {attempt.number} {'runs' if runs else describe_exit(attempt.exit_code)}"
    if not runs and attempt.ended is None:
        return words
    minutes, seconds = divmod(round((attempt.ended or time.time()) - attempt.started), 60)
    return f"{words} ({minutes} min {seconds} s)"


def describe_progress(record: Record) -> str:
    """The last step and loss, and the file in which they stand."""
    path = Path(record.run_folder) / METRICS
    metrics = last_training_line(Path(record.run_folder))
    return f"step {metrics['step']}  loss {metrics['loss']:.4f}  ({path})" if metrics else f"no step in {path}"


def facts(record: Record, active: bool, attempts: Iterable[Attempt]) -> dict[str, Any]:
    """The same for programs; `active` while it runs or waits to."""
    return {
        "name": record.name,
        "backend": record.backend,
        "job_id": record.job_id,
        "run_folder": record.run_folder,
        "active": active,
        "attempts": [asdict(attempt) for attempt in attempts],
        "metrics": last_training_line(Path(record.run_folder)),
    }


def describe_end(record: Record) -> str:
    """Such as "has ended at step 120."."""
    metrics = last_training_line(Path(record.run_folder))
    return "has ended " + (f"at step {metrics['step']}." if metrics else "before its first step.")
