"""Runs commands one after another, skipping each whose result is there already."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from mvlm.errors import ExitCode, UserError

STOPPED = (ExitCode.REQUEUE, ExitCode.INTERRUPTED)
"""Exit codes of a step that the same command resumes."""


class ChainStep(ABC):
    """One command."""

    title: str

    @abstractmethod
    def words(self) -> list[str]:
        """The command; asked for once earlier steps are done, since it may depend on them, as on a number of rows."""

    @abstractmethod
    def is_done(self) -> bool: ...

    def command(self) -> str:
        """The command for people to read, and to paste into a shell."""
        words = self.words()
        return shlex.join(["python" if word == sys.executable else word for word in words])


def run_chain(
    steps: Sequence[ChainStep], execute: Callable[[list[str]], int], say: Callable[[str], None] = lambda text: None
) -> int:
    """Run the steps that are not done yet; returns 0, or the exit code of a step that stopped.

    Args:
        execute: runs a command and returns its exit code.

    Raises:
        UserError: a step failed, or did not make what it should.
    """
    for number, step in enumerate(steps, 1):
        if step.is_done():
            say(f"[{number}/{len(steps)}] {step.title}: done")
            continue
        say(f"[{number}/{len(steps)}] {step.title}\n{step.command()}")
        code = execute(step.words())
        if code in STOPPED:
            return code
        if code:
            raise UserError(
                f"The step '{step.title}' failed with exit code {code}, as said above; fix it and start again."
            )
        if not step.is_done():
            raise UserError(
                f"The step '{step.title}' ended without an error, but is not done: run its command by itself."
            )
    return 0


def execute(words: list[str]) -> int:
    """Run a command in a process of its own, to which signals that ask to stop are passed on.

    Raises:
        UserError: there is no such command.
    """
    try:
        process = subprocess.Popen(words)
    except OSError as error:
        raise UserError(f"{words[0]} cannot be started here ({error}): give --launch a command that can.") from None
    with process, _passing_on(process):
        code = process.wait()
    return ExitCode.REQUEUE if -code in (signal.SIGTERM, signal.SIGUSR1) else code


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
