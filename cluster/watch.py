"""Attempts at a job on this machine: started, shown, told to stop, and started again after a preemption or a crash."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from cluster import processes
from cluster.processes import MARK, POLL_SECONDS, Stopper
from cluster.record import RECORD, Attempt, Record, attempt_number, log_file, read_record

DONE, MISTAKE, USAGE, BUG, PREEMPTED = 0, 1, 2, 70, 75
FINAL = (DONE, MISTAKE, USAGE)  # exit codes that another attempt would only repeat
PATIENCE = 300.0  # seconds that ranks get to save when their launcher has died
READER_PATIENCE = 2.0  # seconds that a reader of this command's output gets for the last of it
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Watch:
    """One submission.

    Args:
        command: makes the launcher's argument list, anew for each attempt.
        environment: all variables of the launcher but the mark by which its processes are found.
        restarts: after exit code 75 or a crash, at most.
    """

    def __init__(
        self,
        record: Record,
        logs: Path,
        command: Callable[[], list[str]],
        environment: Mapping[str, str],
        restarts: int,
    ) -> None:
        self.record, self.logs, self.restarts = record, logs, restarts
        self._command, self._environment = command, environment
        self._signals = 0
        self._echo = True

    def to_the_end(self) -> int:
        """The exit code of the last attempt. Meanwhile a first stop signal lets the ranks save, a second kills them."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._count_signal)
        try:
            return self._attempts()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _attempts(self) -> int:
        if (self.logs / RECORD).exists():
            self.record.attempts = read_record(self.logs).attempts
        first = 1 + max(map(attempt_number, self.logs.glob("attempt-*.log")), default=0)
        for number in range(first, first + self.restarts + 1):
            code = self._attempt(number)
            if code in FINAL or self._signals:
                break
            more = number < first + self.restarts
            _say(f"attempt {number} {describe_exit(code)}; {'starting again' if more else 'no restart is left'}")
        if code == PREEMPTED:
            _say("everything is saved; submit the same job to go on")
        return code

    def _attempt(self, number: int) -> int:
        attempt = Attempt(number, time.time())
        self.record.attempts.append(attempt)
        path = log_file(self.logs, number)
        argv = self._command()
        with open(path, "xb") as out, open(path, "rb") as log:
            self.record.save(self.logs)
            _say(f"attempt {number} of {self.record.name}, log {path}")
            launcher = subprocess.Popen(
                argv,
                env={**self._environment, MARK: str(path.resolve())},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which tells the ranks
            )
            try:
                code = self._watch(launcher, log)
            except BaseException:
                Stopper(self.logs).end(PATIENCE)
                raise
        attempt.ended, attempt.exit_code = time.time(), code
        self.record.save(self.logs)
        return code

    def _watch(self, launcher: subprocess.Popen[bytes], log: BinaryIO) -> int:
        """Show the log and pass on signals until nothing of the attempt is left."""
        stopper: Stopper | None = None
        while launcher.poll() is None:
            self._show(log)
            if self._signals > 1:
                processes.kill(self.logs)
            elif stopper:
                stopper.tell()
            elif self._signals:
                stopper = Stopper(self.logs)
                stopper.tell()
                _say("stopping: the ranks save and end; Ctrl-C again ends them at once")
            time.sleep(POLL_SECONDS)
        code = launcher.returncode if launcher.returncode >= 0 else 128 - launcher.returncode
        if processes.ranks(processes.members(self.logs)):
            _say("the launcher has died; its ranks save and end")
            code = code or BUG  # DeepSpeed's runner reports a launcher that was killed as success
        (stopper or Stopper(self.logs)).end(PATIENCE)
        self._show(log, READER_PATIENCE)
        return code

    def _show(self, log: BinaryIO, patience: float = 0.0) -> None:
        """Print what the log has gained, as far as a reader takes it: a paused terminal must not hold up the job."""
        out = sys.stdout.fileno()
        while self._echo and (block := log.read(select.PIPE_BUF)):
            if not select.select([], [out], [], patience)[1]:
                log.seek(-len(block), os.SEEK_CUR)
                return
            try:
                os.write(out, block)
            except BrokenPipeError:  # nobody reads any more; the log keeps it
                self._echo = False
                discard_output()


def describe_exit(code: int | None) -> str:
    """An exit code in words that follow "attempt 3"."""
    words = {None: "did not end", DONE: "is done", PREEMPTED: "was preempted, everything saved"}
    return words.get(code, f"failed with exit code {code}")


def discard_output() -> None:
    """Send what is still printed nowhere: the reader of the pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str) -> None:
    print(f"cluster: {sentence}", file=sys.stderr, flush=True)
