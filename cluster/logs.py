"""Logs of a job: a folder per attempt, with a file per rank and the launcher's, and how they are shown as one."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

POLL_SECONDS = 0.2
BLOCK = 1 << 20  # bytes read of one file before it is the next one's turn
LONGEST_LINE = 1 << 16  # a progress bar never ends its line
OF_DEEPSPEED = re.compile(r"\d{14}_rank(\d+)\.log")  # what its --enable_each_rank_log writes


def attempt_folder(logs: Path, attempt: int) -> Path:
    return logs / f"attempt-{attempt:03d}"


def rank_log(logs: Path, attempt: int, rank: int) -> Path:
    """Where a rank's output goes."""
    return attempt_folder(logs, attempt) / f"rank-{rank:05d}.log"


def launcher_log(logs: Path, attempt: int) -> Path:
    return attempt_folder(logs, attempt) / "launcher.log"


def attempt_numbers(logs: Path) -> list[int]:
    """The numbers of the attempts that have logged, in order."""
    names = (path.name.removeprefix("attempt-") for path in logs.glob("attempt-*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def next_attempt(logs: Path) -> int:
    """The number after those that have logged."""
    return max(attempt_numbers(logs), default=0) + 1


def name_rank_logs(logs: Path, attempt: int) -> None:
    """Rename the files of DeepSpeed's launcher; whoever writes one keeps writing to it."""
    for path in attempt_folder(logs, attempt).iterdir():
        if found := OF_DEEPSPEED.fullmatch(path.name):
            path.rename(rank_log(logs, attempt, int(found[1])))


def show(logs: Path, unfinished: Callable[[], bool], poll: float = POLL_SECONDS, after: int = 0) -> None:
    """Print the attempts, each with launcher and ranks merged, as long as the job is `unfinished()`.

    Args:
        poll: seconds between two looks; a scheduler that is asked has other users.
        after: attempts up to this number are not shown.
    """
    merged, more = None, True
    while more:
        more = unfinished()  # asked first, so that the last read misses nothing
        for number in attempt_numbers(logs):
            if number > after:
                if merged:
                    _print(merged.new())
                    _print([merged.unended()])
                _print([f"==> {attempt_folder(logs, number)} <==\n".encode()])
                merged, after = MergedLogs(logs, number), number
        if merged:
            _print(merged.new())
        if more:
            time.sleep(poll)
    if merged:
        _print([merged.unended()])


def _print(texts: Iterable[bytes]) -> None:
    """Write past Python's buffers: a thread that waits for a reader must not hold their lock when the command ends."""
    for text in texts:
        while text:
            text = text[os.write(sys.stdout.fileno(), text) :]


class MergedLogs:
    """What the launcher and the ranks of an attempt have written, in the order in which it is found.

    Lines of ranks begin with "12: " if there is more than one. No file is held open: there may be thousands.
    """

    def __init__(self, logs: Path, attempt: int) -> None:
        self._folder, self._launcher = attempt_folder(logs, attempt), launcher_log(logs, attempt)
        self._read: dict[Path, int] = {}  # bytes of each file
        self._begun: dict[Path, bytes] = {}  # the last line of each file, as long as it has no end
        self._ranks = 0

    def new(self) -> Iterator[bytes]:
        """Whole lines that have come since the last call, a block of one file at a time."""
        ranks = sorted(self._folder.glob("rank-*.log"))
        self._ranks = len(ranks)
        waiting = [self._launcher, *ranks]
        while waiting := [path for path in waiting if self._has_grown(path)]:
            for path in waiting:
                if lines := self._whole_lines(path):
                    yield self._named(path, lines)

    def unended(self) -> bytes:
        """The last lines of files that do not end in a line break."""
        return b"".join(self._named(path, text + b"\n") for path, text in sorted(self._begun.items()) if text)

    def _has_grown(self, path: Path) -> bool:
        try:
            return path.stat().st_size > self._read.get(path, 0)
        except FileNotFoundError:
            return False

    def _whole_lines(self, path: Path) -> bytes:
        with open(path, "rb") as file:
            file.seek(self._read.get(path, 0))
            block = file.read(BLOCK)
        self._read[path] = self._read.get(path, 0) + len(block)
        whole, end, begun = (self._begun.get(path, b"") + block).rpartition(b"\n")
        if len(begun) > LONGEST_LINE:
            whole, end, begun = whole + end + begun, b"\n", b""
        self._begun[path] = begun
        return whole + end

    def _named(self, path: Path, lines: bytes) -> bytes:
        if path == self._launcher or self._ranks < 2:
            return lines
        name = b"%d: " % int(path.stem.removeprefix("rank-"))
        return b"".join(name + line for line in lines.splitlines(keepends=True))
