"""Jobs on this machine: DeepSpeed's launcher, watched over in the foreground and started again after a preemption."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from cluster import processes
from cluster.job import Job, JobError, check_files, run_folder
from cluster.processes import MARK, POLL_SECONDS, Stopper
from cluster.record import (
    Attempt,
    Record,
    claim,
    last_training_line,
    log_file,
    read_record,
    this_host,
)

DONE, MISTAKE, USAGE, PREEMPTED, CRASHED = 0, 1, 2, 75, 70
FINAL = (DONE, MISTAKE, USAGE)  # exit codes that another attempt would only repeat
PATIENCE = 300.0  # seconds that ranks get to save when their launcher has died
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Left by a launcher around this command, they would lay out the ranks in place of the job."""


def command(job: Job, overrides: list[str]) -> list[str]:
    """The argument list of DeepSpeed's launcher, with a port that is free now."""
    beside = Path(sys.executable).parent / "deepspeed"
    launcher = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if launcher is None:
        raise JobError("No deepspeed command beside this Python or on PATH: pip install deepspeed.")
    launch = [launcher, "--num_accelerators", str(job.ranks_per_node), "--master_port", str(_free_port())]
    return [*launch, "--module", "mvlm", "train", job.run, "--deepspeed_config", job.deepspeed, *overrides]


def environment(job: Job) -> dict[str, str]:
    """The variables an attempt is given beside those of this process."""
    return ({} if job.gpus_per_node else {"DS_ACCELERATOR": "cpu"}) | job.environment


def render(job: Job, overrides: list[str]) -> str:
    """The command line of an attempt, as a shell would take it."""
    _check_supported(job)
    unset = [word for name in LAUNCHER_VARIABLES if name in os.environ for word in ("-u", name)]
    assignments = [f"{name}={value}" for name, value in environment(job).items()]
    words = ["env", *unset, *assignments] if unset or assignments else []
    return shlex.join([*words, *command(job, overrides)])


def submit(job: Job, overrides: list[str]) -> int:
    """Run the job to its end, in the foreground.

    Ctrl-C, SIGTERM and `cancel` let the ranks save and end; a second Ctrl-C ends them at once.

    Returns:
        The exit code of the last attempt: 0 done, 1 a user's mistake, 75 stopped with everything saved.

    Raises:
        JobError: the job cannot run here, or runs already.
    """
    _check_supported(job)
    logs = job.log_folder
    with claim(logs):
        if processes.members(logs):
            raise JobError(f"Ranks of an earlier {job.name} still run on this machine: cancel it first.")
        return _Watch(job, overrides, logs).to_the_end()


class _Watch:
    """One submission."""

    def __init__(self, job: Job, overrides: list[str], logs: Path) -> None:
        self.job, self.overrides, self.logs = job, overrides, logs
        pid = os.getpid()
        run = str(run_folder(job, overrides).resolve())
        self.record = Record(job.name, "local", run, this_host(), pid, processes.start_time(pid))
        self._signals = 0
        self._echo = True

    def to_the_end(self) -> int:
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
        first = 1 + max((_number(path) for path in self.logs.glob("attempt-*.log")), default=0)
        if first > 1:
            self.record.attempts = read_record(self.logs).attempts if (self.logs / "job.json").exists() else []
        for number in range(first, first + self.job.requeue + 1):
            code = self._attempt(number)
            if code in FINAL or self._signals:
                break
            left = first + self.job.requeue - number
            self._say(f"attempt {number} {describe_exit(code)}; " + ("starting again" if left else "none is left"))
        if code == PREEMPTED:
            self._say("everything is saved; submit the same job to go on")
        return code

    def _attempt(self, number: int) -> int:
        attempt = Attempt(number, time.time())
        self.record.attempts.append(attempt)
        path = log_file(self.logs, number)
        argv = command(self.job, self.overrides)
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        variables = inherited | environment(self.job) | {MARK: str(path.resolve())}
        with open(path, "xb") as out, open(path, "rb") as log:
            self.record.save(self.logs)
            self._say(f"attempt {number} of {self.job.name}, log {path}")
            launcher = subprocess.Popen(
                argv,
                env=variables,
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
        stopper, told = Stopper(self.logs), False
        while launcher.poll() is None:
            self._show(log)
            if self._signals and not told:
                self._say("stopping: the ranks save and end; Ctrl-C again ends them at once")
                told = True
            if self._signals > 1:
                processes.kill(self.logs)
            elif self._signals:
                stopper.tell()
            time.sleep(POLL_SECONDS)
        code = launcher.returncode if launcher.returncode >= 0 else 128 - launcher.returncode
        if processes.ranks(processes.members(self.logs)):
            self._say("the launcher has died; its ranks save and end")
            code = code or CRASHED  # DeepSpeed's runner reports a killed launcher as success
        stopper.end(PATIENCE)
        self._show(log)
        return code

    def _show(self, log: BinaryIO) -> None:
        """Print what the log has gained; when nobody reads any more, the log alone keeps it."""
        if self._echo:
            try:
                print(log.read().decode(errors="replace"), end="", flush=True)
            except BrokenPipeError:
                self._echo = False
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _say(self, sentence: str) -> None:
        print(f"cluster: {sentence}", file=sys.stderr, flush=True)


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    words = {None: "did not end", DONE: "is done", PREEMPTED: "was preempted, everything saved"}
    return words.get(code, f"failed with exit code {code}")


def status(logs: Path) -> str:
    """Attempts, who is alive, and the last step and loss."""
    record = read_record(logs)
    lines = [f"{record.name}: {_condition(record, logs)}"]
    for attempt in record.attempts:
        ended = attempt.ended or time.time()
        took = time.strftime("%H:%M:%S", time.gmtime(ended - attempt.started))
        state = "runs" if attempt is record.attempts[-1] and _is_running(record) else describe_exit(attempt.exit_code)
        lines.append(f"  attempt {attempt.number}  {took}  {state}")
    metrics = last_training_line(Path(record.run_folder))
    where = Path(record.run_folder) / "metrics.jsonl"
    lines.append(
        f"  step {metrics['step']}  loss {metrics['loss']:.4f}  ({where})" if metrics else f"  no step yet in {where}"
    )
    return "\n".join(lines)


def _condition(record: Record, logs: Path) -> str:
    if record.host != this_host():
        return f"was submitted on {record.host}; ask there whether it is alive"
    alive = processes.ranks(processes.members(logs))
    if _is_running(record):
        return f"running, attempt {record.attempts[-1].number}, pid {record.pid} alive, {len(alive)} ranks"
    if alive:
        return f"pid {record.pid}, which watched over it, is dead, but {len(alive)} ranks run; cancel it"
    return f"not running, the last attempt {describe_exit(record.attempts[-1].exit_code)}"


def _is_running(record: Record) -> bool:
    return record.pid_started is not None and processes.start_time(record.pid) == record.pid_started


def logs(folder: Path, follow: bool) -> None:
    """Print the logs of all attempts, ranks merged as the launcher merged them; go on until the job ends if asked."""
    shown = 0
    while True:
        running = _is_running(read_record(folder))
        numbers = sorted(filter(lambda n: n > shown, map(_number, folder.glob("attempt-*.log"))))
        for number in numbers:
            later = log_file(folder, number + 1)
            print(f"==> {log_file(folder, number)} <==", flush=True)
            _copy(
                log_file(folder, number),
                lambda later=later: follow and not later.exists() and _is_running(read_record(folder)),
            )
            shown = number
        if not (follow and running):
            return
        time.sleep(POLL_SECONDS)


def _copy(path: Path, go_on: Callable[[], bool]) -> None:
    """Print a file, and what it gains while `go_on()` holds."""
    with open(path, "rb") as file:
        more = True
        while more:
            more = go_on()  # asked first, so that the last read comes after the last write
            while block := file.read(1 << 20):
                print(block.decode(errors="replace"), end="", flush=True)
            if more:
                time.sleep(POLL_SECONDS)


def cancel(logs: Path) -> str:
    """Have the ranks save and end, and wait for it; the job is not started again.

    Raises:
        JobError: nothing of it runs on this machine.
    """
    record = read_record(logs)
    if record.host != this_host():
        raise JobError(f"{record.name} was submitted on {record.host}: cancel it there.")
    if not _is_running(record) and not processes.members(logs):
        raise JobError(f"{record.name} is not running: there is nothing to cancel.")
    if _is_running(record):
        processes.send(record.pid, signal.SIGTERM)
        while _is_running(record):
            time.sleep(POLL_SECONDS)
    Stopper(logs).end(PATIENCE)
    metrics = last_training_line(Path(record.run_folder))
    return f"{record.name} has ended" + (f" at step {metrics['step']}" if metrics else " before its first step") + "."


def _check_supported(job: Job) -> None:
    check_files(job)
    if job.nodes > 1:
        raise JobError(f"job.nodes is {job.nodes}, and the local back-end has this machine alone: set job.nodes=1.")
    for name in ("time", "partition"):
        if getattr(job, name):
            raise JobError(f"job.{name} is {getattr(job, name)!r}, which the local back-end cannot honour: remove it.")


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("attempt-")
    return int(digits) if digits.isdigit() else 0


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
