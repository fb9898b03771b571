"""Finding and ending the processes of a job on this machine (Linux), by a mark in their environment.

Unlike a process id, the mark cannot be reused by a stranger, and it is inherited by ranks whose launcher has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

MARK = "MVLM_JOB_LOG"  # its value is the log folder of the attempt that the process belongs to
PROC = Path("/proc")
POLL_SECONDS = 0.2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 300.0  # seconds that ranks get to save when their launcher has died


@dataclass(frozen=True)
class JobProcess:
    """A process of a job."""

    pid: int
    parent: int
    has_rank: bool  # RANK is in its environment: a rank, or a child of one


def members(logs: Path) -> list[JobProcess]:
    """The living processes of the job whose attempts log into the folder `logs`."""
    mark = f"{MARK}={logs.resolve()}{os.sep}".encode()
    found = []
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            state, parent = _stat(int(folder.name))[:2]
        except OSError:  # ended meanwhile, or another user's
            continue
        if state != "Z" and any(entry.startswith(mark) for entry in environment):
            has_rank = any(entry.startswith(b"RANK=") for entry in environment)
            found.append(JobProcess(int(folder.name), int(parent), has_rank))
    return found


def ranks(found: list[JobProcess]) -> list[int]:
    """Process ids of the ranks themselves, not of their children."""
    below = {member.pid for member in found if member.has_rank}
    return [member.pid for member in found if member.has_rank and member.parent not in below]


def start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if there is no such process."""
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def is_alive(pid: int, started: str | None) -> bool:
    """Whether the process that had this id at that `start_time` is alive."""
    return started is not None and start_time(pid) == started


@contextlib.contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call a handler for the signals that ask to stop, except for the hangup that nohup makes this process ignore."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, old in before.items():
        if number != signal.SIGHUP or old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before it may hold spaces and brackets."""
    return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()


class Stopper:
    """Asks the ranks of a job to save and end.

    The signal goes to the ranks and not to the launcher: DeepSpeed's answers SIGTERM by killing ranks that have not
    ended 30 seconds later, saved or not, and exits with 1.
    """

    def __init__(self, logs: Path, number: signal.Signals = signal.SIGTERM) -> None:
        self.logs, self.number = logs, number
        self._signalled: set[int] = set()

    def signal_ranks(self) -> bool:
        """Signal every rank that has not been signalled yet; False if nothing of the job is left."""
        found = members(self.logs)
        reached = ranks(found)
        if not reached and not self._signalled:
            reached = [member.pid for member in found]  # there is no rank yet: there is nothing to save
        for pid in reached:
            if pid not in self._signalled:
                send(pid, self.number)
                self._signalled.add(pid)
        return bool(found)

    def end(self, patience: float) -> None:
        """Wait for everything to end, killing what is left after `patience` seconds."""
        deadline = time.monotonic() + patience
        while self.signal_ranks():
            if time.monotonic() > deadline:
                kill(self.logs)
            time.sleep(POLL_SECONDS)


def kill(logs: Path) -> None:
    """End every process of the job at once, saved or not."""
    for member in members(logs):
        send(member.pid, signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
