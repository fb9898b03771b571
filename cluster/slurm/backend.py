"""Jobs on SLURM: a batch script that starts itself again after a preemption or a crash; arrays for sweeps."""

from __future__ import annotations

import contextlib
import shlex
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.job import Job, JobError, Sweep, check_files, refuse, run_folder
from cluster.logs import attempt_folder, attempt_numbers, show
from cluster.progress import describe_attempt, describe_end, describe_progress, facts
from cluster.record import RECORD, Attempt, Record, claim, read_record, write_private
from cluster.slurm import queue as slurm_queue
from cluster.slurm.queue import Queued
from cluster.slurm.script import Task, script
from cluster.sweep import combinations, override
from cluster.watch import describe_exit

CANNOT = ("ray_address",)
SCRIPT = "job.sbatch"
POLL_SECONDS = 2.0  # between questions to the controller, which has other users
AGAIN_SECONDS = 60.0  # until a job is told again to stop: its ranks may not have been there yet
PATIENCE = 600.0  # seconds that ranks get to save


def render(job: Job, overrides: list[str]) -> str:
    """The batch script.

    Raises:
        JobError: SLURM cannot do what the job asks for.
    """
    check_files(job)
    refuse(job, "slurm", CANNOT)
    tasks = _tasks(job, overrides)
    first = 1 + max((_last_attempt(folder) for folder in _folders(job.log_folder, tasks)), default=0)
    return script(job, tasks, first)


def reach(job: Job) -> None:
    """Raises: JobError: this machine has no SLURM, or the job is in its queue already."""
    slurm_queue.require("sbatch")
    _refuse_second(job)


def submit(job: Job, overrides: list[str]) -> int:
    """Put the job into SLURM's queue.

    Returns:
        0: unlike on this machine, the command does not wait for the run.

    Raises:
        JobError: the job cannot run there, or is in the queue already.
    """
    text = render(job, overrides)
    with claim(job.log_folder):
        _refuse_second(job)
        path = job.log_folder / SCRIPT
        write_private(path, text)
        job_id = slurm_queue.submit(path)
        record = Record(
            job.name, "slurm", str(run_folder(job, overrides).resolve()), socket.gethostname(), job_id=job_id
        )
        record.save(job.log_folder)
        if job.sweep:
            for number, task in enumerate(_tasks(job, overrides)):
                folder = job.log_folder / task.label
                folder.mkdir(exist_ok=True)
                run = Path(record.run_folder) / task.label
                replace(record, run_folder=str(run), job_id=f"{job_id}_{number}").save(folder)
    where = shlex.quote(str(job.log_folder))
    print(
        f"{job.name} is job {job_id}; its script and logs are in {job.log_folder}\n"
        f"  python -m cluster status {where}\n"
        f"  python -m cluster logs -f {where}{'/' + _label(0) if job.sweep else ''}\n"
        f"  python -m cluster cancel {where}"
    )
    return 0


def status(folder: Path) -> str:
    """State in the queue, attempts, last step and loss; of a sweep, a line a run."""
    record = read_record(folder)
    queue = slurm_queue.queued(record.job_id)
    if runs := _runs(folder):
        states = {entry.id: entry.state for entry in queue}
        return "\n".join(
            [f"{record.name}: job {record.job_id}, {len(runs)} runs", *(_run_line(r, states) for r in runs)]
        )
    lines = [f"{record.name}: job {record.job_id} {_condition(record, folder, queue)}"]
    running = any(entry.runs for entry in queue)
    numbers = attempt_numbers(folder)
    lines += [_attempt_line(attempt_folder(folder, n), running and n == numbers[-1]) for n in numbers]
    return "\n".join([*lines, f"  {describe_progress(record)}"])


def status_facts(folder: Path) -> dict[str, Any]:
    """The same for programs; a sweep's `runs` are each the same again."""
    record = read_record(folder)
    attempts = (_attempt(attempt_folder(folder, number)) for number in attempt_numbers(folder))
    found = facts(record, bool(slurm_queue.queued(record.job_id)), filter(None, attempts))
    return found | {"runs": [status_facts(run) for run in _runs(folder)]}


def logs(folder: Path, follow: bool) -> None:
    """Print the logs of all attempts, ranks merged; go on until the job leaves the queue if asked.

    Raises:
        JobError: a sweep is to be followed, which has as many logs as runs.
    """
    runs = _runs(folder)
    if runs and follow:
        raise JobError(f"{folder} is a sweep of {len(runs)} runs: follow one of them, such as {runs[0]}.")
    for run in runs or [folder]:
        show(run, _unfinished(read_record(run).job_id) if follow else lambda: False)


def cancel(folder: Path) -> str:
    """Have the ranks save and end, and wait for it; the job is not started again.

    Raises:
        JobError: it is not in the queue.
    """
    record = read_record(folder)
    if not slurm_queue.queued(record.job_id):
        raise JobError(f"{record.name}, job {record.job_id}, is not in the queue: there is nothing to cancel.")
    slurm_queue.forbid_requeue(record.job_id)
    told: dict[str, float] = {}
    deadline = time.monotonic() + PATIENCE
    while queue := slurm_queue.queued(record.job_id):
        for entry in queue:
            if entry.waits or time.monotonic() > deadline:
                slurm_queue.remove(entry.id)
            elif entry.runs and time.monotonic() - told.get(entry.id, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                slurm_queue.signal_batch(entry.id)
                told[entry.id] = time.monotonic()
        time.sleep(POLL_SECONDS / 4)
    ended = [f"{read_record(run).name}/{run.name} {describe_end(read_record(run))}" for run in _runs(folder)]
    return "\n".join(ended) or f"{record.name} {describe_end(record)}"


def _tasks(job: Job, overrides: list[str]) -> list[Task]:
    if job.sweep is None:
        return [Task("", overrides, str(run_folder(job, overrides)))]
    _check_sweep(job.sweep)
    base = run_folder(job, overrides)
    tasks = []
    for number, picked in enumerate(combinations(job.sweep)):
        words = [override(name, value) for name, value in picked.items()]
        run = str(base / _label(number))
        words.append(override("run.dir", run))
        tasks.append(Task(_label(number), [*overrides, *words], run))
    return tasks


def _check_sweep(sweep: Sweep) -> None:
    """Nobody watches over an array's runs, to end one in favour of another."""
    for name in ("metric", "mode", "grace_steps", "reduction"):
        if (value := getattr(sweep, name)) != Sweep.__dataclass_fields__[name].default:
            raise JobError(f"sweep.{name} is {value!r}, which the slurm back-end cannot honour: remove it.")
    if "run.dir" in sweep.values:
        raise JobError("sweep.values has run.dir, which every run of a sweep has of its own: remove it.")


def _label(number: int) -> str:
    return f"{number:03d}"


def _folders(logs: Path, tasks: list[Task]) -> list[Path]:
    return [logs / task.label for task in tasks]


def _runs(folder: Path) -> list[Path]:
    """Log folders of a sweep's runs; empty for a job that is none."""
    job_id = read_record(folder).job_id
    found = sorted(path.parent for path in folder.glob(f"[0-9]*/{RECORD}"))
    return [path for path in found if read_record(path).job_id.partition("_")[0] == job_id]


def _last_attempt(folder: Path) -> int:
    return max(attempt_numbers(folder), default=0)


def _refuse_second(job: Job) -> None:
    if not (job.log_folder / RECORD).exists():
        return
    before = read_record(job.log_folder)
    if before.backend == "slurm" and slurm_queue.queued(before.job_id):
        raise JobError(
            f"{job.name} is in the queue already, as job {before.job_id}: cancel it, or set another job.name."
        )


def _condition(record: Record, folder: Path, queue: list[Queued]) -> str:
    if queue:
        entry = queue[0]
        if entry.waits:
            return f"is {entry.state} ({entry.reason})"
        return f"is {entry.state} on {entry.nodes}, {entry.elapsed} of {entry.limit}"
    accounted = slurm_queue.accounted(record.job_id)
    return "is not in the queue" + (f", {accounted} by the accounts" if accounted else "")


def _attempt_line(folder: Path, runs: bool) -> str:
    attempt = _attempt(folder)
    return f"  {describe_attempt(attempt, runs)}" if attempt else f"  attempt {_number(folder)} has not begun"


def _attempt(folder: Path) -> Attempt | None:
    """What the batch script has noted of it; None before it begins."""
    try:
        attempt = Attempt(_number(folder), int((folder / "started").read_text()))
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):
        attempt.exit_code = int((folder / "exit_code").read_text())
        attempt.ended = (folder / "exit_code").stat().st_mtime
        attempt.step = int((folder / "step").read_text())
    return attempt


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("attempt-"))


def _run_line(folder: Path, states: dict[str, str]) -> str:
    record = read_record(folder)
    state = states.get(record.job_id)
    if state is None:
        last = attempt_folder(folder, _last_attempt(folder)) / "exit_code"
        state = describe_exit(int(last.read_text())) if last.exists() else describe_exit(None)
    return f"  {folder.name} {state}, {describe_progress(record)}"


def _unfinished(job_id: str) -> Callable[[], bool]:
    """Whether the job is in the queue, asking the controller now and then; once it is not it stays so."""
    asked, answer = 0.0, True

    def unfinished() -> bool:
        nonlocal asked, answer
        if answer and time.monotonic() - asked > POLL_SECONDS:
            answer, asked = bool(slurm_queue.queued(job_id)), time.monotonic()
        return answer

    return unfinished
