"""Jobs on a Ray cluster: handed to its job server, looked at and stopped through it."""

from __future__ import annotations

import math
import os
import secrets
import shlex
import time
from pathlib import Path
from typing import Any

from cluster import logs as log_files
from cluster.job import Job, JobError, check_files, refuse
from cluster.progress import describe_attempt, describe_end, describe_progress, facts
from cluster.ray.client import POLL_SECONDS, address, connect, driver_log, import_path, said_plainly, show_driver_log
from cluster.ray.spec import FILE, Spec
from cluster.record import RECORD, Attempt, Record, claim, read_record
from cluster.watch import PATIENCE, describe_exit

CANNOT = ("modules", "partition", "account", "qos", "gpu_request", "launcher", "sbatch")
DRIVER_LINES = 20
RAY_VARIABLES = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": str(round(PATIENCE) + 60),  # Ray kills a driver 3 s after SIGTERM otherwise
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
    "": "unknown to this Ray cluster, which has been started anew",
}


def entrypoint(spec: Spec) -> str:
    """The command line that Ray's job server gives to a shell."""
    return shlex.join([spec.python, "-m", "cluster.ray.driver", str(Path(spec.logs) / FILE)])


def runtime_env(spec: Spec) -> dict[str, Any]:
    """Ray's runtime environment of the driver and all workers."""
    variables = RAY_VARIABLES | {name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"}
    if spec.job.container:
        return {"image_uri": spec.job.container, "env_vars": variables}
    return {"env_vars": variables | {"PYTHONPATH": import_path()}}


def render(job: Job, overrides: list[str]) -> str:
    """What submit would do, for a person: the entry point, its environment, the workers, and the command of a rank."""
    _check_supported(job)
    spec = Spec.of(job, overrides)
    environment = runtime_env(spec)
    least, most = spec.ranks()
    resources = ", ".join(f"{amount:g} {name}" for name, amount in spec.resources().items())
    image = [f"image: {environment['image_uri']}"] if "image_uri" in environment else []
    return "\n".join(
        [
            f"server: {address(job)}",
            f"entrypoint: {entrypoint(spec)}",
            *image,
            *(f"environment: {name}={value}" for name, value in environment["env_vars"].items()),
            f"workers: {most if least == most else f'{least} to {most}'}, each with {resources}, packed by node",
            f"restarts: {job.requeue}",
            *_sweep_lines(job),
            *([f"time: {job.time}, the ranks save {job.warning_seconds} s before its end"] if job.time else []),
            *(f"rank environment: {name}={value}" for name, value in spec.environment().items()),
            f"each rank, in {spec.directory}: {shlex.join(spec.command())}",
            f"logs: {spec.logs}",
        ]
    )


def _sweep_lines(job: Job) -> list[str]:
    sweep = job.sweep
    if sweep is None:
        return []
    every = math.prod(len(choices) for choices in sweep.values.values())
    count = min(sweep.samples or every, every)
    lines = [f"{count} of {every} runs, for the {sweep.mode} of {sweep.metric}"]
    lines.append(f"{sweep.parallel} at a time" if sweep.parallel else "as many at a time as there is room for")
    if sweep.grace_steps:
        lines.append(f"given up early from step {sweep.grace_steps} on: one of {sweep.reduction} goes on")
    lines += [f"{name} = {choices}" for name, choices in sweep.values.items()]
    return [f"sweep: {line}" for line in lines]


def reach(job: Job) -> None:
    """Raises: JobError: no job server answers, or the job runs already."""
    connect(address(job))
    _earlier_attempts(job.log_folder)


def submit(job: Job, overrides: list[str]) -> int:
    """Hand the job to Ray's job server, and return as soon as that has it.

    Returns:
        0; what becomes of the job, `status` and `logs -f` tell.

    Raises:
        JobError: the job cannot run on Ray, runs already, or there is no job server at the address.
    """
    _check_supported(job)
    client = connect(address(job))
    spec = Spec.of(job, overrides)
    folder = Path(spec.logs)
    with claim(folder):
        attempts = _earlier_attempts(folder)
        job_id = f"{job.name}-{secrets.token_hex(4)}"
        Record(job.name, "ray", spec.run_folder, address(job), job_id=job_id, attempts=attempts).save(folder)
        spec.save(folder / FILE)
        metadata = {"job": job.name, "run": spec.run_folder}
        with said_plainly():
            client.submit_job(
                entrypoint=entrypoint(spec), submission_id=job_id, runtime_env=runtime_env(spec), metadata=metadata
            )
    print(f"submitted {job.name} as {job_id} to {address(job)}; its logs go to {job.log_folder}")
    return 0


def status(folder: Path) -> str:
    """What Ray says of the job, its attempts, and the last step and loss."""
    record = read_record(folder)
    state, exit_code = _state(record)
    words = describe_exit(exit_code) if state == "FAILED" and exit_code else IN_WORDS.get(state, state)
    lines = [f"{record.name}: {words}, job {record.job_id} at {record.host}"]
    lines += [f"  {describe_attempt(attempt, _is_active(state))}" for attempt in record.attempts]
    trials = sorted(folder.glob(f"trial-*/{RECORD}"))
    if trials:
        lines += [f"  {path.parent.name}: {describe_progress(read_record(path.parent))}" for path in trials]
    else:
        lines.append(f"  {describe_progress(record)}")
    return "\n".join(lines)


def status_facts(folder: Path) -> dict[str, Any]:
    """The same for programs; a sweep's `runs` are its trials."""
    record = read_record(folder)
    active = _is_active(_state(record)[0])
    trials = (read_record(path.parent) for path in sorted(folder.glob(f"trial-*/{RECORD}")))
    return facts(record, active, record.attempts) | {"runs": [facts(each, active, each.attempts) for each in trials]}


def logs(folder: Path, follow: bool) -> None:
    """Print the logs of all attempts, and go on until the job ends if asked; of a sweep, the log of its driver.

    That of a job that has failed ends with the last lines of its driver's.
    """
    record = read_record(folder)
    asked = 0.0
    active = True

    def unfinished() -> bool:
        nonlocal asked, active
        if follow and active and time.monotonic() - asked > POLL_SECONDS:
            active, asked = _is_active(_state(record)[0]), time.monotonic()
        return follow and active

    if Spec.load(folder / FILE).job.sweep:
        show_driver_log(connect(record.host), record.job_id, unfinished)
        return
    log_files.show(folder, unfinished)
    if _state(record)[0] == "FAILED" or not log_files.attempt_numbers(folder):
        print("==> the driver's log, as Ray has it <==")
        print("\n".join(driver_log(connect(record.host), record.job_id).splitlines()[-DRIVER_LINES:]))


def cancel(folder: Path) -> str:
    """Have the ranks save and end, and wait for it; the job is not started again.

    Raises:
        JobError: it is not running.
    """
    record = read_record(folder)
    if not _is_active(_state(record)[0]):
        raise JobError(f"{record.name} is not running: there is nothing to cancel.")
    with said_plainly():
        connect(record.host).stop_job(record.job_id)
    while _is_active(_state(record)[0]):
        time.sleep(POLL_SECONDS)
    return f"{record.name} {describe_end(record)}"


def _check_supported(job: Job) -> None:
    check_files(job)
    refuse(job, "ray", CANNOT)
    if job.sweep and "run.dir" in job.sweep.values:
        raise JobError('sweep.values has "run.dir": each run of a sweep has its own folder already; remove it.')
    if not job.time:
        refuse(job, "ray", ("warning_seconds",))


def _state(record: Record) -> tuple[str, int | None]:
    """Ray's status of a job, "" for one that it does not know, and the exit code of its driver."""
    client = connect(record.host)
    try:
        info = client.get_job_info(record.job_id)
    except RuntimeError:
        return "", None
    return info.status.value, info.driver_exit_code


def _is_active(state: str) -> bool:
    return state in ("PENDING", "RUNNING")


def _earlier_attempts(folder: Path) -> list[Attempt]:
    """Of earlier submissions.

    Raises:
        JobError: the last of them still runs.
    """
    if not (folder / RECORD).exists():
        return []
    record = read_record(folder)
    if record.backend == "ray" and _is_active(_state(record)[0]):
        raise JobError(f"{record.name} is running as {record.job_id}: cancel it, or set another job.name.")
    return record.attempts
