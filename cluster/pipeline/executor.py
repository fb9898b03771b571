"""Runs the queued steps of a submission, each as soon as those that it waits for are done and there is room for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Protocol

from mvlm.errors import ExitCode
from mvlm.runtime.log import logger

from ..attempt import describe_exit
from ..processes import on_stop_signals
from .submission import Submission

POLL_SECONDS = 0.1
log = logger("cluster")


class RunningStep(Protocol):
    """A process, or a task elsewhere, that does a step or a part of it."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def stop(self) -> None:
        """Have it save and end."""


class Executor:
    """One execution of a submission.

    Args:
        start: begins a step (0), or one of its parts, which count from 1.
        parts: how many parts share a step's work before it joins them; 1 for none.
        fits: whether a step has room beside those that run.
    """

    def __init__(
        self,
        submission: Submission,
        start: Callable[[str, int], RunningStep],
        parts: Callable[[str], int],
        fits: Callable[[str, Collection[str]], bool],
    ) -> None:
        self._submission = submission
        self._start, self._parts, self._fits = start, parts, fits
        self._waiting = [name for name in submission.order if name in submission.queued]
        self._running: dict[str, list[RunningStep]] = {}
        self._joining: set[str] = set()
        self._began: dict[str, float] = {}
        self.codes: dict[str, int] = {}
        self._stopped = self._told = False

    def run(self) -> int:
        """Returns 0 if all is done, 75 if it was stopped, else the code of the first step that failed."""
        with on_stop_signals(self._stop):
            while True:
                self._look()
                if self._stopped and not self._told:
                    log.info("stopping: the running steps save and end")
                    for running in self._running.values():
                        for one in running:
                            one.stop()
                    self._told = True
                if not self._stopped:
                    self._start_ready()
                if not self._running and (self._stopped or not self._ready()):
                    break
                time.sleep(POLL_SECONDS)
        for name in self._waiting:
            failed = [need for need in self._submission.queued[name].needs if self.codes.get(need, 1)]
            log.info(f"{name} has not run" + (f", because of {', '.join(failed)}" if failed else ""))
        failures = [code for name in self._submission.order if (code := self.codes.get(name))]
        if self._stopped:
            return ExitCode.REQUEUE
        return failures[0] if failures else ExitCode.DONE

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True

    def _ready(self) -> list[str]:
        queued = self._submission.queued
        return [name for name in self._waiting if all(self.codes.get(need) == 0 for need in queued[name].needs)]

    def _start_ready(self) -> None:
        for name in self._ready():
            if self._fits(name, self._running):
                parts = self._parts(name)
                log.info(f"{name} begins" + (f", in {parts} parts" if parts > 1 else ""))
                self._waiting.remove(name)
                self._began[name] = time.monotonic()
                self._running[name] = [self._start(name, part) for part in (range(1, parts + 1) if parts > 1 else [0])]
                if parts == 1:
                    self._joining.add(name)

    def _look(self) -> None:
        for name, running in list(self._running.items()):
            codes = [one.poll() for one in running]
            if None in codes:
                continue
            if name not in self._joining and not self._stopped:  # however its parts ended, it does what is missing
                self._joining.add(name)
                self._running[name] = [self._start(name, 0)]
                continue
            del self._running[name]
            self.codes[name] = code = (codes[0] or 0) if name in self._joining else ExitCode.REQUEUE
            seconds = time.monotonic() - self._began[name]
            words = f"{name} {describe_exit(code)} after {seconds:.1f} s"
            log.info(words if code == 0 else f"{words}; its log is in {self._submission.folder(name)}")
