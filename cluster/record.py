"""What is known about a job on disk: `job.json` in its log folder."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvlm.errors import UserError
from mvlm.runtime.storage import write_durably

from .attempt import JobAttempt
from .job import Job, log_folder_of

RECORD = "job.json"
METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
TAIL_BYTES = 1 << 16


@dataclass
class JobRecord:
    """One submission of a job; `attempts` holds those of earlier submissions too."""

    name: str
    backend: str
    run_folder: str
    host: str
    pid: int = 0  # of the submit command that watches over the job
    pid_started: str | None = None  # tells it from a later process of the same id
    job_id: str = ""  # the scheduler's
    makes_shards: bool = False
    is_command: bool = False
    attempts: list[JobAttempt] = field(default_factory=list)

    @property
    def makes_steps(self) -> bool:
        """Whether the number of its steps tells how far it is."""
        return not (self.makes_shards or self.is_command)

    def save(self, logs: Path) -> None:
        write_durably(logs / RECORD, json.dumps(asdict(self), indent=1))


def write_private(path: Path, text: str) -> None:
    """Write a whole file that its owner alone may read: the environment of a job may hold passwords."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # one that was left behind would keep its mode
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)


def keep_files(job: Job) -> None:
    """Copy the files that define a run to where its ranks look for them."""
    for given, kept in () if job.command else zip((job.run, job.deepspeed), job.kept, strict=True):
        write_private(Path(kept), Path(given).read_text(encoding="utf-8"))


def find_logs(path: str) -> Path:
    """The log folder of a job, from its job file, its log folder or the folder that holds that.

    Raises:
        UserError: no job was submitted there.
    """
    given = Path(path)
    candidates = [given, given / "logs"] if given.is_dir() else [log_folder_of(given)]
    for folder in candidates:
        if (folder / RECORD).is_file():
            return folder
    raise UserError(f"No job has been submitted at {path} (no {RECORD} in {candidates[-1]}): submit it first.")


def read_record(logs: Path) -> JobRecord:
    """Raises `UserError` if the record is damaged."""
    try:
        fields = json.loads((logs / RECORD).read_text(encoding="utf-8"))
        attempts = [JobAttempt(**attempt) for attempt in fields.pop("attempts")]
        return JobRecord(**fields, attempts=attempts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{logs / RECORD} is damaged ({error}): move it away and submit the job again.") from None


@contextmanager
def claim(logs: Path, what: str = "job") -> Iterator[None]:
    """Hold the log folder of a job or a pipeline, for one submit command at a time; the kernel frees it when that ends.

    Args:
        what: the table of the file that says where it is.

    Raises:
        UserError: another holds it, or the folder cannot be made.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        file = open(logs / "job.lock", "a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"The log folder {logs} cannot be used ({error}): set {what}.logs to another.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"A {what} is running with the log folder {logs}: cancel it, or give this one another name and folder."
            ) from None
        yield


def last_training_line(run_folder: Path) -> dict[str, Any] | None:
    """The newest line of the run's metrics.jsonl that holds a step and a loss."""
    return next(_training_lines(run_folder), None)


def latest_checkpoint(run_folder: Path) -> str | None:
    """The name of the folder in `checkpoints` that a run would resume from."""
    try:
        return (run_folder / CHECKPOINTS / "latest").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def newest_step(run_folder: Path) -> int:
    """The step that the run has reached, by its newest line and by what it would resume from; 0 before its first.

    Checkpoints of later steps may exist, if the run was rolled back.
    """
    line, latest = last_training_line(run_folder), latest_checkpoint(run_folder) or ""
    saved = latest.removeprefix("step_")
    return max(line["step"] if line else 0, int(saved) if saved.isdecimal() else 0)


def newest_measures(run_folder: Path) -> dict[str, Any] | None:
    """The newest training line, with what the newest line of an evaluation says about held-out data."""
    line = last_training_line(run_folder)
    if line is None:
        return None
    held_out: dict[str, Any] = next((one for one in _lines(run_folder) if "loss" not in one), {})
    return held_out | line


def _training_lines(run_folder: Path) -> Iterator[dict[str, Any]]:
    """The lines at the end of metrics.jsonl that hold a step and a loss, the newest first."""
    for metrics in _lines(run_folder):
        if all(isinstance(metrics.get(key), int | float) for key in ("step", "loss")):
            yield metrics


def _lines(run_folder: Path) -> Iterator[dict[str, Any]]:
    """The lines at the end of metrics.jsonl, the newest first."""
    try:
        with open(run_folder / METRICS, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with suppress(ValueError):  # cut off by the tail, or still being written
            if isinstance(metrics := json.loads(line), dict):
                yield metrics
