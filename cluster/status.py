"""How a job stands: its attempts, its last step and loss, and the runs of a sweep; for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .attempt import JobAttempt, describe_attempt
from .record import METRICS, JobRecord, last_training_line


@dataclass(frozen=True)
class JobStatus:
    """The status of a job, or of one run of a sweep; every back-end has its own `status(logs)` that makes it.

    Attributes:
        words: such as "is RUNNING on n[1-2]", after the job's name.
        active: it runs, or waits to.
        running: it runs, and so does its last attempt if that has not ended.
    """

    record: JobRecord
    words: str
    active: bool
    running: bool
    attempts: list[JobAttempt]
    runs: list[JobStatus] = field(default_factory=list)


def as_text(status: JobStatus) -> str:
    """Attempts, last step and loss; for a sweep, a line per run."""
    last = status.attempts[-1:]
    lines = [f"{status.record.name}: {status.words}"]
    lines += [describe_attempt(one, status.running and one in last) for one in status.attempts]
    lines += [f"{Path(run.record.run_folder).name} {run.words}, {_progress(run.record)}" for run in status.runs]
    if not status.runs and status.record.makes_steps:
        lines.append(_progress(status.record))
    return "\n  ".join(lines)


def as_facts(status: JobStatus) -> dict[str, Any]:
    """The same for programs; a sweep's `runs` are each the same again."""
    record = status.record
    return {
        "name": record.name,
        "backend": record.backend,
        "job_id": record.job_id,
        "run_folder": record.run_folder,
        "active": status.active,
        "attempts": [asdict(attempt) for attempt in status.attempts],
        "metrics": last_training_line(Path(record.run_folder)),
        "runs": [as_facts(run) for run in status.runs],
    }


def describe_end(record: JobRecord) -> str:
    """Such as "has ended at step 120."."""
    if not record.makes_steps:
        return "has ended."
    metrics = last_training_line(Path(record.run_folder))
    return "has ended " + (f"at step {metrics['step']}." if metrics else "before its first step.")


def _progress(record: JobRecord) -> str:
    path = Path(record.run_folder) / METRICS
    metrics = last_training_line(path.parent)
    return f"step {metrics['step']}  loss {metrics['loss']:.4f}  ({path})" if metrics else f"no step in {path}"
