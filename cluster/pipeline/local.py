"""Pipelines on this machine: a process for each step, as many at a time as the graph and the CPUs allow."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

from mvlm.errors import ExitCode, UserError
from mvlm.runtime.launch import end_with_parent

from .. import processes
from ..attempt import shell_code
from ..environment import inherited
from ..processes import MARK, PATIENCE, Stopper
from ..ray.client import import_path
from ..record import JobRecord, read_record
from . import step as step_module
from .executor import Executor
from .graph import Graph
from .submission import Submission
from .words import as_job, job_file, process_words

POLL_SECONDS = 0.2


def check(graph: Graph) -> list[str]:
    """What this back-end cannot do, as sentences."""
    found, room = [], cpus(graph)
    for name, step in graph.pipeline.steps.items():
        if step.cpus > room:
            found.append(
                f"{name}.cpus is {step.cpus}, and pipeline.cpus, or what this machine has, is {room}: ask for less."
            )
        if step.nodes > 1:
            found.append(f"{name}.nodes is {step.nodes}, and the local back-end has only this machine: set 1.")
        if step.image:
            found.append(f"{name}.image is {step.image!r}, which the local back-end cannot honour: remove it.")
    return found


def cpus(graph: Graph) -> int:
    return graph.pipeline.settings.cpus or len(os.sched_getaffinity(0))


def render(graph: Graph, submission: Submission) -> str:
    """A line for each step that would run: its command."""
    lines = []
    for name in submission.queued:
        step = graph.pipeline.steps[name]
        if step.is_job or step.kind == "preflight":
            job = as_job(graph.pipeline, step, "local")
            lines.append(f"# {name}, a job:\n{job_file(job)}# {shlex.join(step.overrides)}")
        else:
            lines.append(f"# {name}\n{shlex.join(process_words(graph.pipeline, step))}")
    return "\n".join(lines)


def submit(graph: Graph, submission: Submission) -> int:
    """Run the queued steps to their end, in the foreground; see `Executor.run`."""
    submission.pid = os.getpid()
    submission.pid_started = processes.start_time(submission.pid)
    submission.save()
    try:
        return Executor(submission, partial(_start, submission), lambda name: 1, partial(_fits, graph)).run()
    finally:
        submission.pid_started = None
        submission.save()


def _start(submission: Submission, name: str, _: int) -> StepProcess | LeftRunning:
    """Begin a step, or wait for one that an earlier driver has left running."""
    folder = submission.folder(name)
    if (record := submission.record(name)) and processes.is_alive(record.pid, record.pid_started):
        return LeftRunning(folder, record)
    Stopper(folder).end(PATIENCE)  # what a process that was killed has left
    return StepProcess(submission, name)


class StepProcess:
    """A step in a process that this driver starts.

    Args:
        ends_with_driver: it saves and ends if the driver is killed; otherwise it keeps running.
    """

    def __init__(self, submission: Submission, name: str, ends_with_driver: bool = False) -> None:
        folder = submission.folder(name)
        own = {MARK: str(folder / step_module.MARK_FOLDER / "0"), "PYTHONPATH": import_path()}
        with open(folder / "step.log", "ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", step_module.__name__, submission.logs, name],
                env=inherited() | own,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the driver, which tells the steps
                preexec_fn=end_with_parent if ends_with_driver else None,
            )

    def poll(self) -> int | None:
        code = self._process.poll()
        return None if code is None else shell_code(code)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)


class LeftRunning:
    """A step of a driver that has died."""

    def __init__(self, folder: Path, record: JobRecord) -> None:
        self._folder, self._record = folder, record

    def poll(self) -> int | None:
        if processes.is_alive(self._record.pid, self._record.pid_started):
            return None
        code = read_record(self._folder).attempts[-1].exit_code
        return ExitCode.BUG if code is None else code

    def stop(self) -> None:
        processes.send(self._record.pid, signal.SIGTERM)


def _fits(graph: Graph, name: str, running: Collection[str]) -> bool:
    """Whether the CPUs of a step are free; those with GPUs run one at a time."""
    step, others = graph.pipeline.steps[name], [graph.pipeline.steps[other] for other in running]
    gpus_fit = step.gpus == 0 or not any(other.gpus for other in others)
    return gpus_fit and step.cpus + sum(other.cpus for other in others) <= cpus(graph)


def live(submission: Submission) -> list[str]:
    """Steps whose processes are alive."""
    records = {name: submission.record(name) for name in submission.queued}
    return [name for name, record in records.items() if record and processes.is_alive(record.pid, record.pid_started)]


def is_elsewhere(submission: Submission) -> bool:
    """Whether another machine drives it, which has not noted its end; only that one knows whether it is alive."""
    return submission.host != socket.gethostname() and submission.pid_started is not None


def refuse_second(submission: Submission, keys: dict[str, str]) -> None:
    """Raises `UserError` if the pipeline is driven, or a step that has changed since is still running."""
    if submission.is_driven:
        raise UserError(f"{submission.path} is running, as process {submission.pid}: cancel it first.")
    for name in live(submission):
        if keys.get(name) != submission.queued[name].key:
            raise UserError(f"{name} of an earlier submission still runs, with other settings: cancel it first.")


def cancel(submission: Submission) -> str:
    """Have the steps that run save and end, and wait for it.

    Raises:
        UserError: nothing of it runs on this machine.
    """
    if submission.host != socket.gethostname():
        raise UserError(f"{submission.path} was submitted on {submission.host}: cancel it there.")
    running = live(submission)
    if not submission.is_driven and not running:
        raise UserError(f"{submission.path} is not running: there is nothing to cancel.")
    if submission.is_driven:
        processes.send(submission.pid, signal.SIGTERM)
    else:
        for name in running:
            if record := submission.record(name):
                processes.send(record.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while submission.is_driven or processes.members(Path(submission.logs)):
        if time.monotonic() > deadline:
            processes.kill(Path(submission.logs))
        time.sleep(POLL_SECONDS)
    return "the steps that ran have ended; submit the same pipeline to resume"
