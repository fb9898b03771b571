"""Ends a run that hangs, and names the rank that holds it up.

The main thread of every rank marks what it begins. A thread beside it writes a heartbeat file and, once the main
thread has spent longer on one thing than it may, looks at the others'. The lowest live rank judges: it says one
sentence when a rank sends no heartbeat or is stuck behind the others; then all exit with the code for "requeue me". A
rank that is behind but may still be at work is waited for.

What can block is kept apart from what must not: a second thread ends the rank if the first is itself stuck in a file
system that does not answer. A rank whose main thread holds the interpreter's lock can run neither: the others name it,
and the launcher kills it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from mvlm.checkpoint.layout import candidates
from mvlm.errors import ExitCode, UserError
from mvlm.runtime import dist
from mvlm.training.health.heartbeat import HEARTBEATS, QUIET_AFTER, Hang, Heartbeat, Others, duration, period_s, read

HANGS = "hangs.jsonl"
STDERR = 2
EXCHANGES = ("torch.distributed.distributed_c10d", "mvlm.runtime.background")
"""Modules in which the main thread waits for other ranks."""


class Mark(NamedTuple):
    marks: int
    step: int
    doing: str
    patience: float


class Watchdog:
    """Watches the main thread while the context is open. All ranks must mark the same sequence.

    Args:
        run: gets `heartbeat/rank-00000.json` and, in a hang, `heartbeat/rank-00000.stack.txt` and `hangs.jsonl`.
        attempt: of this run; other attempts' heartbeats do not count.
        minutes: that one thing may take.
        ranks: those whose heartbeats this run folder has; None = all.
    """

    def __init__(self, run: Path, attempt: int, minutes: float, ranks: tuple[int, ...] | None = None) -> None:
        self._run = run
        self._folder = run / HEARTBEATS
        self._attempt = attempt
        self._limit = 60 * minutes
        self._period = period_s(minutes)
        self._rank, self._host = dist.rank(), socket.gethostname()
        self._ranks = range(dist.world()) if ranks is None else ranks
        self._unseen = dist.world() - len(self._ranks)
        self._mark = Mark(0, 0, "starting", 1.0)
        self._turns = 0
        self._closed = threading.Event()
        bodies = (self._watch, self._watch_the_watch)
        self._threads = [threading.Thread(target=body, name="mvlm-watchdog", daemon=True) for body in bodies]

    def at(self, step: int, doing: str, patience: float = 1.0) -> None:
        """Mark what the main thread begins.

        Args:
            step: updates made.
            patience: times the minutes that this may take.
        """
        self._mark = Mark(self._mark.marks + 1, step, doing, patience)

    def __enter__(self) -> Watchdog:
        with contextlib.suppress(OSError):  # once: a run folder that is removed must not come back
            self._folder.mkdir(exist_ok=True)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=1)  # no longer, since it may be stuck in the file system

    def _watch(self) -> None:
        stillness = _Stillness(self._period)
        inquiry: _Inquiry | None = None
        failures = 0
        while True:
            mark = self._mark
            still_s = stillness.seconds(mark)
            stuck = self._is_stuck(mark, still_s)
            heartbeat = self._heartbeat(mark, still_s, stuck)
            failure = self._write(heartbeat)
            failures = failures + 1 if failure and stuck else 0
            if failures >= QUIET_AFTER:
                self._end_alone(mark, still_s, f"cannot be written ({failure})")
            if not stuck:
                inquiry = None
            elif not failure:
                if inquiry is None:
                    inquiry = _Inquiry(self._folder, self._attempt, self._rank, self._ranks, self._unseen)
                    self._dump_stacks()
                if inquiry.others_end():
                    self._write(replace(heartbeat, ends=True))
                    os._exit(ExitCode.REQUEUE)
                if hang := inquiry.verdict(heartbeat):
                    self._end(hang, heartbeat)
            self._turns += 1
            if self._closed.wait(self._period):
                return

    def _watch_the_watch(self) -> None:
        stillness = _Stillness(self._period)
        turns, waited = -1, 0
        while not self._closed.wait(self._period):
            mark = self._mark
            still_s = stillness.seconds(mark)
            waited = waited + 1 if self._is_stuck(mark, still_s) and self._turns == turns else 0
            turns = self._turns
            if waited >= 2 * QUIET_AFTER:
                self._end_alone(mark, still_s, "does not answer")

    def _is_stuck(self, mark: Mark, still_s: float) -> bool:
        return still_s >= self._limit * mark.patience

    def _heartbeat(self, mark: Mark, still_s: float, stuck: bool) -> Heartbeat:
        return Heartbeat(
            attempt=self._attempt,
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            step=mark.step,
            doing=mark.doing,
            marks=mark.marks,
            still_s=round(still_s, 3),
            stuck=stuck,
            exchanging=stuck and _is_exchanging(),
            ends=False,
            time=time.time(),
        )

    def _write(self, heartbeat: Heartbeat) -> str | None:
        """What went wrong, if anything."""
        try:
            heartbeat.write(self._folder)
        except OSError as error:
            return str(error)
        return None

    def _dump_stacks(self) -> None:
        path = self._folder / f"rank-{self._rank:05d}.stack.txt"
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            file.write(f"Attempt {self._attempt}, {time.strftime('%Y-%m-%d %H:%M:%S%z')}\n")
            file.flush()
            faulthandler.dump_traceback(file)

    def _end(self, hang: Hang, heartbeat: Heartbeat) -> NoReturn:
        """Speak for all ranks, and exit."""
        sentence = f"The run hangs: {hang.sentence()}; stacks are in {self._folder}; {_how_to_resume(self._run)}."
        record = {"attempt": self._attempt, "time": time.time(), "sentence": sentence} | hang.record()
        with contextlib.suppress(OSError), open(self._run / HANGS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        _report(sentence)
        self._write(replace(heartbeat, ends=True))
        self._wait_until_ended(set(self._ranks) - hang.quiet - {self._rank})
        os._exit(ExitCode.REQUEUE)

    def _wait_until_ended(self, ranks: set[int]) -> None:
        """Wait until they end: otherwise their main threads would fail first, when this exit breaks connections."""
        deadline = time.monotonic() + QUIET_AFTER * self._period
        while ranks and time.monotonic() < deadline:
            time.sleep(self._period / 10)
            ranks = {rank for rank in ranks if not ((beat := read(self._folder, rank, self._attempt)) and beat.ends)}

    def _end_alone(self, mark: Mark, still_s: float, why: str) -> NoReturn:
        _report(
            f"The run hangs, and {self._folder} {why}, so the rank at fault is not known: rank {self._rank} on "
            f'{self._host} has been in "{mark.doing}" at step {mark.step} for {duration(still_s)}; the same command '
            "resumes from the newest whole checkpoint."
        )
        os._exit(ExitCode.REQUEUE)


class _Stillness:
    """How long a value has stayed the same, in time that this process was awake: a suspended run is not a hang."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._value: object = None
        self._asked = time.monotonic()
        self._seconds = 0.0

    def seconds(self, value: object) -> float:
        """To be called every period."""
        now = time.monotonic()
        self._seconds = self._seconds + min(now - self._asked, 2 * self._period) if value is self._value else 0.0
        self._value, self._asked = value, now
        return self._seconds


class _Inquiry:
    """One rank's part in finding who is at fault. Only the lowest live rank reads everybody's heartbeat."""

    def __init__(self, folder: Path, attempt: int, rank: int, ranks: Sequence[int], unseen: int) -> None:
        self._others = Others(folder, attempt)
        self._rank = rank
        self._ranks = ranks
        self._unseen = unseen
        self._before = [other for other in ranks if other < rank]
        self._looks = 0

    def others_end(self) -> bool:
        """Whether the rank that judges has done so. To be called every period."""
        while self._before:
            beat = self._others.look(self._before[0])
            if beat and beat.ends:
                return True
            if not self._others.is_quiet(self._before[0]):
                return False
            self._before.pop(0)
        return False

    def verdict(self, own: Heartbeat) -> Hang | None:
        """The hang, if it is this rank that judges and one can be blamed. To be called every period."""
        if self._before:
            return None
        ranks = [rank for rank in self._ranks if rank != self._rank]
        beats = {rank: self._others.look(rank) for rank in ranks} | {self._rank: own}
        self._looks += 1
        if self._looks <= QUIET_AFTER:
            return None
        hang = Hang(dict(sorted(beats.items())), frozenset(filter(self._others.is_quiet, ranks)), self._unseen)
        return hang if hang.at_fault else None


def _is_exchanging() -> bool:
    """Whether the main thread is in a collective, or waits for one in another thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and frame.f_globals.get("__name__") not in EXCHANGES:
        frame = frame.f_back
    return frame is not None


def _how_to_resume(run: Path) -> str:
    try:
        newest = candidates(run).first.name
    except UserError:
        return "there is no whole checkpoint yet, so the same command starts from the beginning"
    return f"the newest whole checkpoint is {newest}, and the same command resumes from it"


def _report(sentence: str) -> None:
    """Write it on a line of its own, past `logging` and Python's buffers, whose locks the main thread may hold, and
    without waiting for a reader."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, f"\nmvlm: {sentence}\n".encode())
