"""Attempts at a job on this machine: started, shown, told to stop, and started again after a preemption or a crash."""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cluster import processes
from cluster.logs import Merged, attempt_folder, attempt_numbers, launcher_log, name_rank_logs
from cluster.processes import MARK, POLL_SECONDS, Stopper
from cluster.record import RECORD, Attempt, Record, newest_step, read_record

DONE, MISTAKE, USAGE, BUG, PREEMPTED = 0, 1, 2, 70, 75
FINAL = (DONE, MISTAKE, USAGE)  # exit codes that another attempt would only repeat
FRUITLESS = 3  # restarts in a row without a new step, after which another would only repeat them
PATIENCE = 300.0  # seconds that ranks get to save when their launcher has died
READER_PATIENCE = 2.0  # seconds that a reader of this command's output gets for the last of it
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Limit:
    """Of an attempt's time, in seconds; the next one has all of it anew, as a job that is requeued."""

    seconds: float = math.inf
    warning: float = 0.0  # before the end, for saving


class Watch:
    """One submission.

    Args:
        command: makes the launcher's argument list for the attempt of that number.
        environment: all variables of the launcher but the mark by which its processes are found.
        restarts: after exit code 75 or a crash, at most.
    """

    def __init__(
        self,
        record: Record,
        logs: Path,
        command: Callable[[int], list[str]],
        environment: Mapping[str, str],
        restarts: int,
        limit: Limit,
    ) -> None:
        self.record, self.logs, self.restarts, self.limit = record, logs, restarts, limit
        self._command, self._environment = command, environment
        self._signals = 0

    def to_the_end(self) -> int:
        """The exit code of the last attempt. Meanwhile a first stop signal lets the ranks save, a second kills them."""
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in before.items():
            if number != signal.SIGHUP or handler is not signal.SIG_IGN:  # nohup
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
        first, steps = next_attempt(self.logs), []
        for number in range(first, first + self.restarts + 1):
            code = self._attempt(number)
            if code in FINAL or self._signals:
                break
            steps.append(self.record.attempts[-1].step or 0)
            if is_stuck(steps):
                _say(f"attempt {number} {describe_exit(code)}; {describe_stuck(max(steps))}")
                break
            more = number < first + self.restarts
            _say(f"attempt {number} {describe_exit(code)}; {'starting again' if more else 'no restart is left'}")
        if code == PREEMPTED:
            _say("everything is saved; submit the same job to go on")
        return code

    def _attempt(self, number: int) -> int:
        attempt = Attempt(number, time.time())
        self.record.attempts.append(attempt)
        argv, folder = self._command(number), attempt_folder(self.logs, number)
        folder.mkdir()
        with open(launcher_log(self.logs, number), "xb") as out:
            self.record.save(self.logs)
            _say(f"attempt {number} of {self.record.name}, logs in {folder}")
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
        self.record.save(self.logs)
        return code

    def _watch(self, launcher: subprocess.Popen[bytes], number: int) -> int:
        """Show the logs, pass on signals and keep the time until nothing of the attempt is left."""
        stopper: Stopper | None = None
        echo, began = Echo(Merged(self.logs, number)), time.monotonic()
        while launcher.poll() is None:
            name_rank_logs(self.logs, number)
            echo.show()
            left = began + self.limit.seconds - time.monotonic()
            if self._signals > 1 or left < 0:
                processes.kill(self.logs)
            elif stopper:
                stopper.tell()
            elif self._signals or left < self.limit.warning:
                stopper = self._stop(left)
            time.sleep(POLL_SECONDS)
        if time.monotonic() > began + self.limit.seconds:
            _say(f"the time limit, {self.limit.seconds:.0f} s, is over: what had not ended was killed")
        code = launcher.returncode if launcher.returncode >= 0 else 128 - launcher.returncode
        if processes.ranks(processes.members(self.logs)):
            _say("the launcher has died; its ranks save and end")
            code = code or BUG  # DeepSpeed's runner reports a launcher that was killed as success
        (stopper or Stopper(self.logs)).end(PATIENCE)
        name_rank_logs(self.logs, number)
        echo.finish()
        return code

    def _stop(self, left: float) -> Stopper:
        """Tell the ranks, as a scheduler would."""
        if self._signals:
            _say("stopping: the ranks save and end; Ctrl-C again ends them at once")
        else:
            _say(f"the time limit is {left:.0f} s away: the ranks save and end")
        stopper = Stopper(self.logs, signal.SIGTERM if self._signals else signal.SIGUSR1)
        stopper.tell()
        return stopper


class Echo:
    """Prints what an attempt logs, as far as a reader takes it: a paused terminal must not hold up the job."""

    def __init__(self, merged: Merged) -> None:
        self._merged = merged
        self._held = b""

    def show(self, patience: float = 0.0) -> bool:
        """Print what is new; False when the reader did not take all of it within `patience` seconds a block."""
        if not self._write(patience):
            return False
        for lines in self._merged.new():
            self._held += lines
            if not self._write(patience):
                return False
        return True

    def finish(self) -> None:
        """Print the last of it, unless nobody reads."""
        if self.show(READER_PATIENCE):
            self._held = self._merged.unended()
            self._write(READER_PATIENCE)

    def _write(self, patience: float) -> bool:
        out = sys.stdout.fileno()
        while self._held:
            if not select.select([], [out], [], patience)[1]:
                return False
            try:
                self._held = self._held[os.write(out, self._held[: select.PIPE_BUF]) :]
            except BrokenPipeError:  # the logs keep it
                self._held = b""
                discard_output()
        return True


def next_attempt(logs: Path) -> int:
    """The number after those that have logged."""
    return max(attempt_numbers(logs), default=0) + 1


def is_stuck(steps: Sequence[int]) -> bool:
    """Whether so many restarts in a row have made no new step, given the newest step after each attempt."""
    return len(steps) > FRUITLESS and max(steps[-FRUITLESS:]) <= max(steps[:-FRUITLESS])


def describe_stuck(step: int | str) -> str:
    """What then becomes of a job whose newest step this is."""
    return (
        f"{FRUITLESS} restarts in a row have made no step beyond {step}, so the job ends: see how its logs end, and "
        "submit it again once that is mended"
    )


def describe_exit(code: int | None) -> str:
    """An exit code in words that follow "attempt 3"."""
    words = {None: "did not end", DONE: "is done", PREEMPTED: "was preempted, everything saved"}
    return words.get(code, f"failed with exit code {code}")


def discard_output() -> None:
    """Send what is still printed nowhere: the reader of the pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(sentence: str) -> None:
    print(f"cluster: {sentence}", file=sys.stderr, flush=True)
