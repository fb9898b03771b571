"""Jobs on this machine: DeepSpeed's launcher, watched over in the foreground and started again after a preemption."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from mvlm.errors import UserError
from mvlm.runtime.launch import free_port

from . import processes
from .attempt import describe_exit
from .environment import LAUNCHER_VARIABLES, added, for_process, inherited
from .job import Job, check_files, refuse, run_folder
from .logs import attempt_folder, next_attempt, show
from .processes import PATIENCE, POLL_SECONDS, Stopper
from .record import JobRecord, claim, keep_files, read_record
from .status import JobStatus, describe_end
from .supervisor import Supervisor, TimeLimit

CANNOT = (
    *("min_nodes", "cpus_per_process", "venv", "modules", "container", "partition", "account", "qos"),
    *("gpu_request", "launcher", "sbatch", "ray_address", "sweep"),
)


def command(job: Job, overrides: list[str], attempt: int) -> list[str]:
    """The argument list of DeepSpeed's launcher, whose ranks log into the attempt's folder."""
    options = ["--enable_each_rank_log", str(attempt_folder(job.log_folder, attempt))]
    return [*_launch(job, options), *job.words(overrides)]


def _launch(job: Job, options: list[str]) -> list[str]:
    """The command line up to the command of `mvlm`, with a port that is free now."""
    beside = Path(sys.executable).parent / "deepspeed"
    launcher = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if launcher is None:
        raise UserError("There is no deepspeed command beside this Python or on PATH: pip install deepspeed.")
    ranks = ["--num_accelerators", str(job.ranks_per_node), "--master_port", str(free_port())]
    return [launcher, *ranks, *options, "--module", "mvlm"]


def render(job: Job, overrides: list[str]) -> str:
    """The command line of an attempt, as a shell would take it; every attempt has a port of its own."""
    _check_supported(job)
    unset = [word for name in LAUNCHER_VARIABLES if name in os.environ for word in ("-u", name)]
    assignments = [f"{name}={value}" for name, value in added(job).items()]
    argv = command(job, overrides, next_attempt(job.log_folder))
    return shlex.join([*(["env", *unset, *assignments] if unset or assignments else []), *argv])


def reach(job: Job) -> None:
    """Raises `UserError` if the job, or what is left of it, runs here already."""
    if job.log_folder.exists():
        with claim(job.log_folder):
            _refuse_second(job)


def submit(job: Job, overrides: list[str]) -> int:
    """Run the job to its end, in the foreground.

    Ctrl-C, SIGTERM and `cancel` let the ranks save and end; a second Ctrl-C ends them at once.

    Returns:
        The exit code of the last attempt: 0 done, 1 a user's mistake, 75 stopped with everything saved.

    Raises:
        UserError: the job cannot run here, or runs already.
    """
    _check_supported(job)
    run, pid = run_folder(job, overrides).resolve(), os.getpid()
    started = processes.start_time(pid)
    record = JobRecord(job.name, "local", str(run), socket.gethostname(), pid, started, is_command=bool(job.command))
    with claim(job.log_folder):
        _refuse_second(job)
        keep_files(job)
        limit = TimeLimit(job.time_seconds or math.inf, job.warning_seconds)
        start, variables = partial(command, job, overrides), inherited() | for_process(job)
        return Supervisor(record, job.log_folder, start, variables, job.requeue, limit).run()


def _refuse_second(job: Job) -> None:
    if processes.members(job.log_folder):
        raise UserError(f"Processes of an earlier {job.name} are still running on this machine: cancel it first.")


def preflight(job: Job, overrides: list[str]) -> int:
    """Measure this machine as the job would use it; 0 if all is well, 1 if not.

    Raises:
        UserError: the job cannot run here.
    """
    _check_supported(job)
    argv = [*_launch(job, ["--log_level", "error"]), "preflight", job.run, *overrides]
    return subprocess.run(argv, env=inherited() | for_process(job), stdin=subprocess.DEVNULL).returncode


def status(folder: Path) -> JobStatus:
    """Whether its submit command and its ranks are alive, which only the job's own machine knows."""
    record = read_record(folder)
    watched = _is_watched(record)
    return JobStatus(record, _condition(record, folder, watched), watched, watched, record.attempts)


def _condition(record: JobRecord, folder: Path, watched: bool) -> str:
    if record.host != socket.gethostname():
        return f"was submitted on {record.host}; ask there whether it is alive"
    ranks = len(processes.ranks(processes.members(folder)))
    if watched:
        return f"running, attempt {record.attempts[-1].number}, pid {record.pid} alive, ranks alive: {ranks}"
    if ranks:
        return f"pid {record.pid}, which supervised it, is dead, ranks alive: {ranks}; cancel it"
    return f"not running, the last attempt {describe_exit(record.attempts[-1].exit_code)}"


def _is_watched(record: JobRecord) -> bool:
    return processes.is_alive(record.pid, record.pid_started)


def logs(folder: Path, follow: bool) -> None:
    """Print the logs of all attempts, launcher and ranks merged, until the job ends if asked."""
    show(folder, lambda: follow and _is_watched(read_record(folder)))


def cancel(folder: Path) -> str:
    """Have the ranks save and end, and wait for it; the job is not started again.

    Raises:
        UserError: nothing of it runs on this machine.
    """
    record = read_record(folder)
    if record.host != socket.gethostname():
        raise UserError(f"{record.name} was submitted on {record.host}: cancel it there.")
    watched = _is_watched(record)
    if not watched and not processes.members(folder):
        raise UserError(f"{record.name} is not running: there is nothing to cancel.")
    if watched:
        processes.send(record.pid, signal.SIGTERM)
    while _is_watched(record):
        time.sleep(POLL_SECONDS)
    Stopper(folder).end(PATIENCE)
    return f"{record.name} {describe_end(record)}"


def _check_supported(job: Job) -> None:
    check_files(job)
    if job.nodes > 1:
        raise UserError(f"job.nodes is {job.nodes}, and the local back-end has only this machine: set job.nodes=1.")
    refuse(job, "local", CANNOT)
    if not (processes.PROC / "self/environ").exists():
        raise UserError("The local back-end finds ranks in /proc, which this machine does not have: submit on Linux.")
