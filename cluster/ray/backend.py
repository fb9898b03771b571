"""Jobs on a Ray cluster: handed to its job server, looked at and stopped through it."""

from __future__ import annotations

import os
import secrets
import shlex
import time
from pathlib import Path
from typing import Any

from mvlm.errors import UserError

from ..attempt import JobAttempt, describe_attempt, describe_exit
from ..environment import added
from ..job import Job, check_files, refuse
from ..logs import attempt_numbers, show
from ..processes import PATIENCE
from ..record import RECORD, JobRecord, claim, keep_files, read_record
from ..status import JobStatus, describe_end
from ..sweep import combinations, count
from . import client
from .client import address, connect, refusals_as_mistakes
from .spec import FILE, TUNE, RayJobSpec

CANNOT = ("modules", "partition", "account", "qos", "gpu_request", "launcher", "sbatch")
DRIVER_LINES = 20
RAY_VARIABLES = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": str(round(PATIENCE) + 60),  # otherwise Ray kills a driver 3 s after SIGTERM
    "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "1",  # LOCAL_RANK counts the GPUs of a node
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # runs and their attempts in the dashboard
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}
IN_WORDS = {
    "PENDING": "waits for Ray to start it",
    "RUNNING": "running",
    "STOPPED": "stopped",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    client.LOST: "lost with the head: submit it again",
    "": "unknown to this Ray cluster, which has been restarted",
}


def entrypoint(spec: RayJobSpec, file: Path) -> str:
    """The command line that Ray's job server gives to a shell; `file` holds the spec."""
    return shlex.join([spec.python, "-m", f"{__package__}.driver", str(file)])


def runtime_env(spec: RayJobSpec) -> dict[str, Any]:
    """Ray's runtime environment of the driver and all workers."""
    variables = RAY_VARIABLES | {name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"}
    if spec.job.container:
        return {"image_uri": spec.job.container, "env_vars": variables}
    return {"env_vars": variables | {"PYTHONPATH": client.import_path()}}


def render(job: Job, overrides: list[str]) -> str:
    """What submit would do, for a person: the entry point, its environment, the workers, and the command of a rank."""
    _check_supported(job)
    spec = RayJobSpec.of(job, overrides)
    environment = runtime_env(spec)
    least, most = spec.ranks()
    resources = ", ".join(f"{amount:g} {name}" for name, amount in spec.resources().items())
    image = [f"image: {environment['image_uri']}"] if "image_uri" in environment else []
    return "\n".join(
        [
            f"server: {address(job)}",
            f"entrypoint: {entrypoint(spec, Path(spec.logs) / FILE)}",
            *image,
            *(f"environment: {name}={value}" for name, value in environment["env_vars"].items()),
            f"workers: {most if least == most else f'{least} to {most}'}, each with {resources}, packed by node",
            f"restarts: {job.requeue}",
            *_sweep_lines(job),
            *([f"time: {job.time}, the ranks save {job.warning_seconds} s before its end"] if job.time else []),
            *(f"rank environment: {name}={value}" for name, value in added(job).items()),
            f"each rank, in {spec.directory}: {shlex.join(spec.command())}",
            f"logs: {spec.logs}",
        ]
    )


def _sweep_lines(job: Job) -> list[str]:
    sweep = job.sweep
    if sweep is None:
        return []
    every = count(sweep)
    lines = [f"{min(sweep.samples or every, every)} of {every} runs, for the {sweep.mode} of {sweep.metric}"]
    lines.append(f"{sweep.parallel} at a time" if sweep.parallel else "as many at a time as there is room for")
    if sweep.grace_steps:
        lines.append(f"given up early from step {sweep.grace_steps} on: one of {sweep.reduction} is kept")
    lines += [f"{name} = {choices}" for name, choices in sweep.values.items()]
    return [f"sweep: {line}" for line in lines]


def reach(job: Job) -> None:
    """Raises `UserError` if no job server answers, or the job runs already."""
    connect(address(job))
    earlier_attempts(job.log_folder)


def submit(job: Job, overrides: list[str]) -> int:
    """Hand the job to Ray's job server, and return as soon as that has it.

    Returns:
        0; `status` and `logs -f` tell what becomes of the job. Within a job of Ray, the job's own exit code.

    Raises:
        UserError: the job cannot run on Ray, runs already, or there is no job server at the address.
    """
    _check_supported(job)
    server = connect(address(job))
    spec = RayJobSpec.of(job, overrides)
    folder = Path(spec.logs)
    with claim(folder):
        attempts = earlier_attempts(folder)
        refuse_another_sweep(job, folder)
        keep_files(job)
        job_id = f"{job.name}-{secrets.token_hex(4)}"
        record = JobRecord(job.name, "ray", spec.run_folder, address(job), job_id=job_id, attempts=attempts)
        record.is_command = bool(job.command)
        record.save(folder)
        spec.save(folder / FILE)
        metadata = {"job": job.name, "run": spec.run_folder}
        with refusals_as_mistakes():
            server.submit_job(
                entrypoint=entrypoint(spec, folder / FILE),
                submission_id=job_id,
                runtime_env=runtime_env(spec),
                metadata=metadata,
            )
    print(f"submitted {job.name} as {job_id} to {address(job)}; its logs go to {job.log_folder}", flush=True)
    return client.outcome(server, job_id)


def refuse_another_sweep(job: Job, folder: Path) -> None:
    """Raises `UserError` if Tune would take finished runs for others of the same numbers, or use settings it kept."""
    if not (job.sweep and (folder / TUNE).exists() and (folder / FILE).exists()):
        return
    before = RayJobSpec.load(folder / FILE).job.sweep
    if before is None:
        return
    if combinations(before) != combinations(job.sweep):
        raise UserError(
            f"{job.name} has begun as a sweep of other values, whose runs would count as done with these: "
            "give it another job.name and run.dir."
        )
    for key in ("parallel", "grace_steps", *(("metric", "mode", "reduction") if before.grace_steps else ())):
        if (kept := getattr(before, key)) != getattr(job.sweep, key):
            raise UserError(
                f"{job.name} has begun with sweep.{key} = {kept!r}, with which it would continue: put that back, "
                "or give it another job.name and run.dir."
            )


def status(folder: Path) -> JobStatus:
    """What Ray says about the job; of a sweep, also what its trials have noted."""
    record = read_record(folder)
    state, exit_code = _state(record)
    active = _is_active(state)
    words = describe_exit(exit_code) if state == "FAILED" and exit_code else IN_WORDS.get(state, state)
    runs = [JobStatus(one, _last_attempt(one, active), active, active, one.attempts) for one in _trials(folder)]
    return JobStatus(record, f"{words}, job {record.job_id} at {record.host}", active, active, record.attempts, runs)


def _trials(folder: Path) -> list[JobRecord]:
    """The trials of a sweep that have begun; empty if the job is not a sweep."""
    return [read_record(path.parent) for path in sorted(folder.glob(f"trial-*/{RECORD}"))]


def _last_attempt(trial: JobRecord, active: bool) -> str:
    return describe_attempt(trial.attempts[-1], active) if trial.attempts else "has not begun"


def logs(folder: Path, follow: bool) -> None:
    """Print the logs of all attempts, until the job ends if asked; of a sweep, the log of its driver.

    If the job has failed, the last lines of its driver's log follow.
    """
    record = read_record(folder)
    if RayJobSpec.load(folder / FILE).job.sweep:
        if follow:
            client.follow_driver_log(connect(record.host), record.job_id)
        else:
            print(client.driver_log(connect(record.host), record.job_id), end="")
        return
    show(folder, lambda: follow and _is_active(_state(record)[0]), client.POLL_SECONDS)
    if _state(record)[0] == "FAILED" or not attempt_numbers(folder):
        print("==> the driver's log, as Ray has it <==")
        print("\n".join(client.driver_log(connect(record.host), record.job_id).splitlines()[-DRIVER_LINES:]))


def cancel(folder: Path) -> str:
    """Have the ranks save and end, and wait for it; the job is not started again.

    Raises:
        UserError: it is not running.
    """
    record = read_record(folder)
    if not _is_active(_state(record)[0]):
        raise UserError(f"{record.name} is not running: there is nothing to cancel.")
    with refusals_as_mistakes():
        connect(record.host).stop_job(record.job_id)
    while _is_active(_state(record)[0]):
        time.sleep(client.POLL_SECONDS)
    return describe_ends(folder)


def describe_ends(folder: Path) -> str:
    """How far the job has come; of a sweep, a line for each of its runs that has begun."""
    return "\n".join(f"{one.name} {describe_end(one)}" for one in _trials(folder) or [read_record(folder)])


def _check_supported(job: Job) -> None:
    check_files(job)
    refuse(job, "ray", CANNOT)
    if not job.time:
        refuse(job, "ray", ("warning_seconds",))


def _state(record: JobRecord) -> tuple[str, int | None]:
    """Ray's status of a job, "" if it does not know it, and the exit code of its driver."""
    return client.job_state(connect(record.host), record.host, record.job_id)


def _is_active(state: str) -> bool:
    return state in client.ACTIVE


def earlier_attempts(folder: Path) -> list[JobAttempt]:
    """The attempts of earlier submissions.

    Raises:
        UserError: the last submission still runs, as far as is known.
    """
    if not (folder / RECORD).exists():
        return []
    record = read_record(folder)
    if record.backend == "ray":
        client.refuse_second(record.host, record.job_id, record.name, folder / RECORD)
    return record.attempts
