"""Jobs on SLURM: a batch script that starts itself again after a preemption or a crash; arrays for sweeps."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import time
from dataclasses import replace
from pathlib import Path

from mvlm.errors import UserError
from mvlm.runtime.storage import write_durably

from ..attempt import JobAttempt, describe_exit
from ..job import Job, Sweep, check_files, refuse, run_folder
from ..logs import attempt_folder, attempt_numbers, next_attempt, show
from ..record import RECORD, JobRecord, claim, keep_files, read_record, write_private
from ..status import JobStatus, describe_end
from ..sweep import combinations, override
from . import queue as slurm_queue
from .queue import QueueEntry
from .script import ScriptRun, script

CANNOT = ("ray_address",)
OF_EARLY_STOPPING = ("metric", "mode", "grace_steps", "reduction")
"""Refused, since nobody watches over an array's runs to end one in favour of another."""
SCRIPT = "job.sbatch"
VALUES = "sweep.json"  # beside it: what the runs try, in their order
POLL_SECONDS = 2.0  # between questions to the controller, which has other users
AGAIN_SECONDS = 60.0  # until a job is told again to stop: its ranks may not have been there yet
PATIENCE = 600.0  # seconds that ranks get to save


def render(job: Job, overrides: list[str]) -> str:
    """The batch script.

    Raises:
        UserError: SLURM cannot do what the job asks for.
    """
    check_files(job)
    refuse(job, "slurm", CANNOT)
    _refuse_other_values(job)
    runs = _script_runs(job, overrides)
    return script(job, runs, max(next_attempt(job.log_folder / run.label) for run in runs))


def reach(job: Job) -> None:
    """Raises `UserError` if this machine has no SLURM, or the job is in its queue already."""
    slurm_queue.require("sbatch")
    refuse_second(job)


def submit(job: Job, overrides: list[str]) -> int:
    """Put the job into SLURM's queue.

    Returns:
        0: unlike on this machine, the command does not wait for the run.

    Raises:
        UserError: the job cannot run there, or is in the queue already.
    """
    text = render(job, overrides)
    with claim(job.log_folder):
        refuse_second(job)
        keep_files(job)
        path = job.log_folder / SCRIPT
        write_private(path, text)
        if job.sweep:
            _note_values(job.log_folder / VALUES, _values(job.sweep))
        job_id = slurm_queue.submit(path)
        folder = str(run_folder(job, overrides).resolve())
        record = JobRecord(job.name, "slurm", folder, socket.gethostname(), job_id=job_id, is_command=bool(job.command))
        record.save(job.log_folder)
        if job.sweep:
            for number, run in enumerate(_script_runs(job, overrides)):
                logs = job.log_folder / run.label
                logs.mkdir(exist_ok=True)
                own = Path(record.run_folder) / run.label
                replace(record, run_folder=str(own), job_id=f"{job_id}_{number}").save(logs)
    where = shlex.quote(str(job.log_folder))
    print(
        f"{job.name} is job {job_id}; its script and logs are in {job.log_folder}\n"
        f"  mvlm-cluster status {where}\n"
        f"  mvlm-cluster logs -f {where}{'/' + _label(0) if job.sweep else ''}\n"
        f"  mvlm-cluster cancel {where}"
    )
    return 0


def status(folder: Path) -> JobStatus:
    """What the queue says, and what the script has noted about its attempts; for a sweep, about each run."""
    record = read_record(folder)
    queue = slurm_queue.queued(record.job_id)
    runs = [_status(run, [entry for entry in queue if entry.id == read_record(run).job_id]) for run in _runs(folder)]
    if not runs:
        return _status(folder, queue, _condition(record, queue))
    words = f"job {record.job_id}, {len(runs)} runs"
    return JobStatus(record, words, bool(queue), any(run.running for run in runs), [], runs)


def _status(folder: Path, queue: list[QueueEntry], words: str = "") -> JobStatus:
    """
    Args:
        words: "" for a run of a sweep, whose state, or how its last attempt ended, is taken instead.
    """
    attempts = noted_attempts(folder)
    state = queue[0].state if queue else describe_exit(attempts[-1].exit_code if attempts else None)
    running = any(entry.runs for entry in queue)
    return JobStatus(read_record(folder), words or state, bool(queue), running, attempts)


def logs(folder: Path, follow: bool) -> None:
    """Print the logs of all attempts, ranks merged, until the job leaves the queue if asked, and then SLURM's own.

    Raises:
        UserError: `follow` is asked of a sweep, which has as many logs as runs.
    """
    runs = _runs(folder)
    if runs and follow:
        raise UserError(f"{folder} is a sweep of {len(runs)} runs: follow one of them, such as {runs[0]}.")
    for run in runs or [folder]:
        show(run, lambda: follow and bool(slurm_queue.queued(read_record(folder).job_id)), POLL_SECONDS)
        _show_slurms_own(folder, read_record(run).job_id)


def _show_slurms_own(folder: Path, job_id: str) -> None:
    """Print what is in no attempt's log, such as that a module is missing or a node was lost."""
    for place in (folder, folder.parent):  # the folder of a sweep has those of its runs
        path = place / f"slurm-{job_id}.log"
        if path.exists() and (text := path.read_text(encoding="utf-8", errors="replace")):
            print(f"==> {path} <==\n{text}", end="")


def cancel(folder: Path) -> str:
    """Have the ranks save and end, and wait for it; the job is not started again.

    Raises:
        UserError: it is not in the queue, or suspended.
    """
    record = read_record(folder)
    if not slurm_queue.queued(record.job_id):
        raise UserError(f"{record.name}, job {record.job_id}, is not in the queue: there is nothing to cancel.")
    slurm_queue.forbid_requeue(record.job_id)
    signalled: dict[str, float] = {}
    deadline = time.monotonic() + PATIENCE
    while queue := slurm_queue.queued(record.job_id):
        if all(entry.is_suspended for entry in queue):
            raise UserError(
                f"{record.name}, job {record.job_id}, is suspended and cannot save: cancel it again after `scontrol "
                f"resume {record.job_id}`, or give up the steps since its last checkpoint with `scancel "
                f"{record.job_id}`."
            )
        for entry in queue:
            if entry.waits or time.monotonic() > deadline:
                slurm_queue.remove(entry.id)
            elif entry.runs and time.monotonic() - signalled.get(entry.id, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                slurm_queue.signal_batch(entry.id)
                signalled[entry.id] = time.monotonic()
        time.sleep(POLL_SECONDS / 4)
    ended = [f"{record.name}/{run.name} {describe_end(read_record(run))}" for run in _runs(folder)]
    return "\n".join(ended) or f"{record.name} {describe_end(record)}"


def _script_runs(job: Job, overrides: list[str]) -> list[ScriptRun]:
    folder = run_folder(job, overrides)
    if job.sweep is None:
        return [ScriptRun("", overrides, str(folder))]
    refuse(job.sweep, "slurm", OF_EARLY_STOPPING)
    runs = []
    for number, picked in enumerate(combinations(job.sweep)):
        own = str(folder / _label(number))
        words = [override(name, value) for name, value in (picked | {"run.dir": own}).items()]
        runs.append(ScriptRun(_label(number), [*overrides, *words], own))
    return runs


def _values(sweep: Sweep) -> list[list[str]]:
    """What each run tries."""
    return [[override(name, value) for name, value in picked.items()] for picked in combinations(sweep)]


def _noted_values(path: Path) -> list[list[str]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _note_values(path: Path, values: list[list[str]]) -> None:
    """Write what the runs try, and keep what further runs of an earlier submission tried: they have begun."""
    write_durably(path, json.dumps([*values, *_noted_values(path)[len(values) :]]))


def _refuse_other_values(job: Job) -> None:
    """Raises `UserError` if a run that has begun would continue, or count as done, with other values."""
    if job.sweep:
        before = _noted_values(job.log_folder / VALUES)
        for number, (first, now) in enumerate(zip(before, _values(job.sweep), strict=False)):
            if first != now and attempt_numbers(job.log_folder / _label(number)):
                raise UserError(
                    f"Run {_label(number)} of {job.name} has begun with {' '.join(first)}, and would be that of "
                    f"{' '.join(now)}: give the sweep another job.name and run.dir."
                )


def _label(number: int) -> str:
    return f"{number:03d}"


def _runs(folder: Path) -> list[Path]:
    """Log folders of a sweep's runs; empty if the job is not a sweep."""
    job_id = read_record(folder).job_id
    found = sorted(path.parent for path in folder.glob(f"[0-9]*/{RECORD}"))
    return [path for path in found if read_record(path).job_id.partition("_")[0] == job_id]


def refuse_second(job: Job) -> None:
    if not (job.log_folder / RECORD).exists():
        return
    before = read_record(job.log_folder)
    if before.backend == "slurm" and slurm_queue.queued(before.job_id):
        raise UserError(
            f"{job.name} is in the queue already, as job {before.job_id}: cancel it, or give this one another name and "
            "folder."
        )


def _condition(record: JobRecord, queue: list[QueueEntry]) -> str:
    job = f"job {record.job_id} is "
    running = [entry for entry in queue if entry.runs]
    if running and record.makes_shards:  # the job that joins the parts waits all the while, and comes first
        return f"{job}RUNNING, {len(running)} of {len(queue)} tasks in the queue"
    if queue and queue[0].waits:
        return f"{job}{queue[0].state} ({queue[0].reason})"
    if queue:
        return f"{job}{queue[0].state} on {queue[0].nodes}, {queue[0].elapsed} of {queue[0].limit}"
    accounted = slurm_queue.accounted(record.job_id)
    return f"{job}not in the queue" + (f", {accounted} by the accounts" if accounted else "")


def noted_attempts(folder: Path) -> list[JobAttempt]:
    """What the batch script has noted in a log folder."""
    return [found for number in attempt_numbers(folder) if (found := _attempt(attempt_folder(folder, number)))]


def _attempt(folder: Path) -> JobAttempt | None:
    """What the batch script has noted about an attempt; None before it begins."""
    try:
        attempt = JobAttempt(int(folder.name.removeprefix("attempt-")), int((folder / "started").read_text()))
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):
        attempt.exit_code = int((folder / "exit_code").read_text())
        attempt.ended = (folder / "exit_code").stat().st_mtime
        attempt.step = int((folder / "step").read_text())
    return attempt
