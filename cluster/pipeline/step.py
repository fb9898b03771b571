"""One step, or one part of it, as every back-end starts it: `python -m cluster.pipeline.step LOGS STEP [--part I]`.

It checks that the step's inputs are complete, runs its command, again after exit code 75 or a crash, checks that its
outputs are complete, and records all that: in the logs of its attempts, a record, and the proof beside the output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from mvlm.errors import ExitCode, UserError
from mvlm.runtime.launch import end_with_parent
from mvlm.runtime.log import logger

from .. import processes
from ..attempt import FINAL, JobAttempt, describe_exit, shell_code
from ..environment import inherited, read_references
from ..job import Job, parse_time
from ..logs import attempt_folder, launcher_log, next_attempt
from ..processes import MARK, PATIENCE, Stopper
from ..ray.spec import FILE as RAY_SPEC
from ..ray.spec import RayJobSpec
from ..record import JobRecord, read_record, write_private
from ..slurm import preflight
from .graph import Graph
from .page import write_page
from .proof import is_whole
from .submission import RECORD, Submission, is_made, is_settled, settle
from .words import as_job, interpreter, job_file, part_words, process_words, step_folder

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
MARK_FOLDER = "step"  # of its processes, below the step's logs: those of a job that it starts have marks of their own
AGAIN_SECONDS = 1.0  # before the first retry, doubled for each further one
LONGEST_WAIT = 60.0
KILL_SECONDS = 30.0  # for a step to save when its time is over, like SLURM's KillWait
log = logger("cluster")


def main(argv: Sequence[str]) -> int:
    """The exit code of the step: 0, 1 for a mistake, 75 if it was stopped, or the command's own."""
    parser = argparse.ArgumentParser(prog="cluster.pipeline.step", description=__doc__)
    parser.add_argument("logs", type=Path)
    parser.add_argument("step")
    parser.add_argument("--part", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        submission = Submission.load(args.logs)
        os.chdir(submission.directory)
        return StepRun(submission, args.step, args.part).run()
    except UserError as error:
        log.error(error)
        return error.exit_code
    except OSError as error:  # from the notes that a step leaves; an error of its command ends only that
        log.error(f"{args.step} cannot write its status ({error}): fix that, such as a full disk, and submit again.")
        return ExitCode.MISTAKE


class StepRun:
    """A step's process.

    Args:
        part: of the step's parts, counted from 1; 0 for the step as a whole, which joins them if there are any.
    """

    def __init__(self, submission: Submission, name: str, part: int) -> None:
        self.submission, self.name, self.part = submission, name, part
        self.graph: Graph = submission.graph()
        self.pipeline, self.step = self.graph.pipeline, self.graph.pipeline.steps[name]
        self.logs = step_folder(self.pipeline, name).absolute()
        if part:
            self.logs = self.logs / f"part-{part:05d}"
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        pid = os.getpid()
        host, key = socket.gethostname(), submission.queued[name].key
        self.record = JobRecord(name, submission.backend, "", host, pid, processes.start_time(pid), job_id=key)
        if (self.logs / RECORD).exists():
            before = read_record(self.logs)
            if before.job_id == key:
                self.record.attempts = before.attempts  # of a process whose node was lost

    def run(self) -> int:
        self.logs.mkdir(parents=True, exist_ok=True)
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        if self.submission.backend == "ray" and not self._is_job:
            Stopper(self.logs).end(PATIENCE)  # what a killed worker of Ray has left on this node
        code = self._attempts()
        write_page(Path(self.submission.logs))
        return code

    def _attempts(self) -> int:
        retries = 0 if self.step.is_job else self.step.retries  # a job restarts by itself
        for number in range(retries + 1):
            code = self._attempt()
            if code in FINAL or self._stopped:
                break
            if number < retries:
                log.info(f"{self.name} {describe_exit(code)}; starting again")
                self._wait(min(AGAIN_SECONDS * 2**number, LONGEST_WAIT))
        return ExitCode.REQUEUE if self._stopped and code not in FINAL else code

    def _attempt(self) -> int:
        number = next_attempt(self.logs)
        attempt = JobAttempt(number, time.time())
        self.record.attempts.append(attempt)
        attempt_folder(self.logs, number).mkdir(parents=True)
        self.record.save(self.logs)
        write_page(Path(self.submission.logs))
        with open(launcher_log(self.logs, number), "ab") as out:
            try:
                # this process needs the step's own variables too, to look into stores
                os.environ.update(read_references(self.pipeline.environment(self.step)))
                self._require_inputs()
                made = not self.part and is_made(self.graph, self.submission, self.name)
                code = ExitCode.DONE if made else self._execute(self._words(), out.fileno())
                if code == 0 and not self.part:
                    settle(self.graph, self.submission, self.name)
            except UserError as error:
                out.write(f"cluster: {error}\n".encode())
                code = error.exit_code
        attempt.ended, attempt.exit_code = time.time(), code
        self.record.save(self.logs)
        return code

    def _require_inputs(self) -> None:
        """Raises `UserError` if an input is not complete."""
        for path in self.graph.reads[self.name]:
            makers = [name for name in self.graph.made(path) if name != self.name]
            for maker in makers:
                queued = self.submission.queued.get(maker)
                if (
                    queued
                    and maker in self.graph.needs[self.name]
                    and not is_settled(self.graph, self.submission, maker)
                ):
                    settle(self.graph, self.submission, maker)  # it could not do so itself, as a job of SLURM
            is_output = any(path in step.writes for step in self.pipeline.steps.values())
            if makers and not is_whole(path, self.pipeline.steps[makers[0]].kind if is_output else ""):
                raise UserError(f"{self.name} reads {path}, which is not there or not whole: run {makers[0]} again.")

    @property
    def _is_job(self) -> bool:
        return self.step.is_job or self.step.kind == "preflight"

    def _words(self) -> list[str]:
        if self.part:
            return part_words(self.pipeline, self.step, self.part)
        if self._is_job:
            return self._job_words()
        return process_words(self.pipeline, self.step)

    def _job_words(self) -> list[str]:
        """The back-end's own command for a job, of a step with ranks."""
        backend, verb = self.submission.backend, "preflight" if self.step.kind == "preflight" else "submit"
        job, python = as_job(self.pipeline, self.step, backend), interpreter(self.pipeline)
        if backend == "slurm":
            return preflight.within_job(job, self.step.overrides)
        if backend == "ray" and verb == "submit":
            return _ray_driver(job, self.step.overrides)
        path = self.logs / "job.toml"
        write_private(path, job_file(job))
        package = __package__.rpartition(".")[0]
        return [python, "-m", package, verb, str(path), "--on", backend, *self.step.overrides]

    def _execute(self, words: list[str], out: int) -> int:
        """Run a command in a process group of its own, to which stop signals are passed on."""
        environment = inherited() | {MARK: str(self.logs / MARK_FOLDER / "0")}
        if self._stopped:
            return ExitCode.REQUEUE
        try:
            self._child = _start(words, environment, out)
        except OSError as error:
            raise UserError(f"{self.name} cannot run {words[0]} ({error.strerror}): fix {self.name}.command.") from None
        if self._stopped:  # while it was being started
            self._pass_on()
        limit = parse_time(self.step.time) if self.submission.backend != "slurm" and not self._is_job else None
        try:
            code = shell_code(self._child.wait(limit))
        except subprocess.TimeoutExpired:
            os.write(out, f"cluster: {self.name}.time, {self.step.time}, is over\n".encode())
            return self._end_late()
        return ExitCode.REQUEUE if self._stopped and code > 128 else code

    def _end_late(self) -> int:
        """Have a command that has used up its time save and end, or kill it; returns 75, as SLURM would requeue it."""
        assert self._child
        self._pass_on()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(KILL_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        return ExitCode.REQUEUE

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        self._pass_on()

    def _pass_on(self) -> None:
        if self._child and self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGTERM)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and time.monotonic() < end:
            time.sleep(0.1)


def _start(words: list[str], environment: Mapping[str, str], out: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def _ray_driver(job: Job, overrides: list[str]) -> list[str]:
    """Training on Ray, driven by a process beside the pipeline's driver."""
    spec = RayJobSpec.of(job, overrides)
    folder = Path(spec.logs)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(folder / RAY_SPEC)
    return [sys.executable, "-m", RayJobSpec.__module__.replace(".spec", ".driver"), str(folder / RAY_SPEC)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
