"""Commands one after another, each of which is left out where what it makes is there already."""

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
"""How a step ends that the same command resumes."""


class ChainStep(ABC):
    """One command."""

    title: str

    @abstractmethod
    def words(self) -> list[str]:
        """The command; what it takes from earlier steps, such as a number of rows, is known once they are done."""

    @abstractmethod
    def is_done(self) -> bool: ...

    def command(self) -> str:
        """For people to read, and to paste into a shell."""
        words = self.words()
        return shlex.join(["python" if word == sys.executable else word for word in words])


def run_chain(
    steps: Sequence[ChainStep], execute: Callable[[list[str]], int], say: Callable[[str], None] = lambda text: None
) -> int:
    """Run what is not done yet; returns the exit code, of the step that stopped if one did.

    Args:
        execute: runs a command and returns its exit code.

    Raises:
        UserError: a step failed, or has not made what it was to make.
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
                f"The step '{step.title}' ended without an error and is not done: run its command by itself."
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
