"""Attempts at a job on this machine: started, shown, told to stop, and started again after a preemption or a crash."""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mvlm.errors import ExitCode
from mvlm.runtime.launch import LAUNCHER_DIED
from mvlm.runtime.log import logger

from . import processes
from .attempt import FINAL, JobAttempt, describe_exit, describe_stuck, is_stuck, shell_code
from .logs import attempt_folder, launcher_log, name_rank_logs, next_attempt, show
from .processes import MARK, PATIENCE, POLL_SECONDS, Stopper
from .record import RECORD, JobRecord, newest_step, read_record

READER_PATIENCE = 2.0  # seconds that a reader of this command's output gets for the last of it
log = logger("cluster")


@dataclass(frozen=True)
class TimeLimit:
    """The limit of an attempt's time, in seconds; the next one has all of it again, like a job that is requeued."""

    seconds: float = math.inf
    warning: float = 0.0  # before the end, for saving


class Supervisor:
    """One submission.

    Args:
        command: makes the launcher's argument list for the attempt of that number.
        environment: all variables of the launcher but the mark by which its processes are found.
        restarts: after exit code 75 or a crash, at most.
    """

    def __init__(
        self,
        record: JobRecord,
        logs: Path,
        command: Callable[[int], list[str]],
        environment: Mapping[str, str],
        restarts: int,
        limit: TimeLimit,
    ) -> None:
        self.record, self.logs, self.restarts, self.limit = record, logs, restarts, limit
        self._command, self._environment = command, environment
        self._first, self._signals = next_attempt(logs), 0

    def run(self) -> int:
        """The exit code of the last attempt. Meanwhile a first stop signal lets the ranks save, a second kills them."""
        ended = threading.Event()
        echo = threading.Thread(target=self._show_logs, args=(ended,), daemon=True)  # no reader may hold up the job
        with processes.on_stop_signals(self._count_signal):
            echo.start()
            try:
                return self._attempts()
            finally:
                ended.set()
                echo.join(READER_PATIENCE)

    def _show_logs(self, ended: threading.Event) -> None:
        with contextlib.suppress(OSError):  # the logs keep it
            show(self.logs, lambda: not ended.is_set(), after=self._first - 1)

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _attempts(self) -> int:
        if (self.logs / RECORD).exists():
            self.record.attempts = read_record(self.logs).attempts
        last, steps = self._first + self.restarts, []
        for number in range(self._first, last + 1):
            code = self._attempt(number)
            if code in FINAL or self._signals:
                break
            steps.append(self.record.attempts[-1].step or 0)
            if self.record.makes_steps and is_stuck(steps):
                log.info(f"attempt {number} {describe_exit(code)}; {describe_stuck(max(steps))}")
                break
            more = "starting again" if number < last else "no restart is left"
            log.info(f"attempt {number} {describe_exit(code)}; {more}")
        if code == ExitCode.REQUEUE:
            log.info("everything is saved; submit the same job to resume")
        return code

    def _attempt(self, number: int) -> int:
        attempt = JobAttempt(number, time.time())
        self.record.attempts.append(attempt)
        argv, folder = self._command(number), attempt_folder(self.logs, number)
        folder.mkdir()
        with open(launcher_log(self.logs, number), "xb") as out:
            self.record.save(self.logs)
            log.info(f"attempt {number} of {self.record.name}, logs in {folder}")
            launcher = subprocess.Popen(
                argv,
                env={**self._environment, MARK: str(folder.resolve())},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which tells the ranks
            )
            try:
                code = self._watch(launcher, number)
            except BaseException:
                Stopper(self.logs).end(PATIENCE)
                raise
        attempt.ended, attempt.exit_code = time.time(), code
        attempt.step = newest_step(Path(self.record.run_folder))
        try:
            self.record.save(self.logs)
        except OSError as error:  # what the ranks have done is done anyway
            log.warning(f"{self.logs} cannot record how attempt {number} ended ({error}): free some room there.")
        return code

    def _watch(self, launcher: subprocess.Popen[bytes], number: int) -> int:
        """Pass on signals and keep the time until nothing of the attempt is left."""
        stopper: Stopper | None = None
        began = time.monotonic()
        while launcher.poll() is None:
            name_rank_logs(self.logs, number)
            left = began + self.limit.seconds - time.monotonic()
            if self._signals > 1 or left < 0:
                processes.kill(self.logs)
            elif stopper:
                stopper.signal_ranks()
            elif self._signals or left < self.limit.warning:
                stopper = self._stop(left)
            time.sleep(POLL_SECONDS)
        if time.monotonic() > began + self.limit.seconds:
            log.info(f"the time limit, {self.limit.seconds:.0f} s, is over: what had not ended was killed")
        code = shell_code(launcher.returncode)
        if stopper and launcher.returncode == -stopper.number:
            code = ExitCode.REQUEUE  # it was told in place of ranks, which it had not started yet
        orphaned = bool(processes.ranks(processes.members(self.logs)))
        if orphaned:
            log.info("the launcher has died; its ranks save and end")
        (stopper or Stopper(self.logs)).end(PATIENCE)
        name_rank_logs(self.logs, number)
        if not code and not orphaned and self._lost_launcher(number):
            log.info("the launcher has died; its ranks have saved and ended")
            orphaned = True
        return code or (ExitCode.BUG if orphaned else 0)  # DeepSpeed's runner reports success for a killed one

    def _lost_launcher(self, number: int) -> bool:
        """Whether the ranks' logs say that it died: they may have ended before anybody could see that."""
        logs = attempt_folder(self.logs, number).glob("rank-*.log")
        return any(LAUNCHER_DIED in line for path in logs for line in path.open(errors="replace"))

    def _stop(self, left: float) -> Stopper:
        """Tell the ranks, as a scheduler would."""
        if self._signals:
            log.info("stopping: the ranks save and end; Ctrl-C again ends them at once")
        else:
            log.info(f"the time limit is {left:.0f} s away: the ranks save and end")
        stopper = Stopper(self.logs, signal.SIGTERM if self._signals else signal.SIGUSR1)
        stopper.signal_ranks()
        return stopper
