"""What SLURM's own commands say about a job, and do to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mvlm.errors import UserError

ANSWER_SECONDS = 60.0  # that a busy controller may take
ACCOUNTS_SECONDS = 10.0  # that sacct may take, which is asked for a detail only
GONE = "invalid job id"
OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
"""Variables by which SLURM's commands reach the cluster, within an allocation or elsewhere."""


@dataclass(frozen=True)
class QueueEntry:
    """A job, or a task of an array, in the queue."""

    id: str  # such as 17 or 17_3
    state: str  # such as PENDING, RUNNING, COMPLETING
    nodes: str  # such as n[1-2]
    reason: str  # why it waits
    elapsed: str
    limit: str

    @property
    def waits(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")

    @property
    def runs(self) -> bool:
        return self.state == "RUNNING"

    @property
    def is_suspended(self) -> bool:
        return self.state in ("SUSPENDED", "STOPPED")


def require(command: str) -> None:
    """Raises `UserError` if a command of SLURM is not on this machine."""
    if shutil.which(command) is None:
        raise UserError(f"There is no {command} on this machine: run this where SLURM's commands are installed.")


def submit(script: Path) -> str:
    """Hand a script to sbatch; returns the job's id.

    Raises:
        UserError: SLURM is not here, does not answer or refuses.
    """
    done = _run("sbatch", "--parsable", str(script), environment=_outside())
    if done.returncode:
        raise UserError(f"sbatch refuses {script} ({_complaint(done)}): change the job file accordingly.")
    return done.stdout.strip().partition(";")[0]


def queued(job_id: str) -> list[QueueEntry]:
    """The job, or the tasks of its array, that are in the queue; empty if it has ended.

    Raises:
        UserError: SLURM is not here or does not answer.
    """
    done = _run("squeue", "--noheader", "--array", f"--jobs={job_id}", "--format=%i|%T|%N|%r|%M|%l")
    if done.returncode:
        if GONE in done.stderr.lower():
            return []
        raise UserError(f"squeue does not answer ({_complaint(done)}): try again when SLURM's controller does.")
    return [QueueEntry(*line.split("|", 5)) for line in done.stdout.splitlines()]


def accounted(job_id: str) -> str:
    """How the job ended according to the accounts; "" if there are none or they do not answer."""
    with contextlib.suppress(UserError):
        fields = ("--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job_id}")
        done = _run("sacct", *fields, seconds=ACCOUNTS_SECONDS)
        states = done.stdout.split("\n")
        if done.returncode == 0 and states[0]:
            return states[0].strip()
    return ""


def forbid_requeue(job_id: str) -> None:
    """Keep the job from starting again, whatever happens to it. One that has just ended is left as it is."""
    _run("scontrol", "update", f"JobId={job_id}", "Requeue=0")


def signal_batch(job_id: str) -> None:
    """Send SIGUSR1 to the job's script, as SLURM does before the time limit."""
    _run("scancel", "--batch", "--signal=USR1", job_id)


def remove(job_id: str) -> None:
    """End the job at once; one that waits just leaves the queue."""
    _run("scancel", job_id)


def _outside() -> dict[str, str]:
    """This process's variables without those of an allocation that it runs in, such as an interactive session's: sbatch
    hands them on, and srun would bind and place the ranks by them."""
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    return {name: value for name, value in os.environ.items() if name in OF_THE_CLUSTER or name[:5] != "SLURM"}


def _run(
    *command: str, seconds: float = ANSWER_SECONDS, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    require(command[0])
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} did not answer within {seconds:.0f} s: see whether SLURM's controller is up."
        ) from None


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}"
