"""What a table takes from beginning to end, and running it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from mvlm.errors import ExitCode, UserError
from mvlm.reproduce.corpora import in_order
from mvlm.reproduce.steps import ChainStep, EvaluateStep, GenerateStep, ShardStep, TrainStep, Workplace
from mvlm.reproduce.tables import Table

STOPPED = (ExitCode.REQUEUE, ExitCode.INTERRUPTED)
"""How a step ends that the same command resumes."""


def chain(table: Table, place: Workplace) -> list[ChainStep]:
    """The steps in their order: shards, then each run followed by its evaluations, so that results come early."""
    steps: list[ChainStep] = [GenerateStep(place)] if place.miniature else []
    steps += [ShardStep(place, name) for name in in_order(table.shards)]
    for name in table.runs:
        steps.append(TrainStep(place, name))
        steps += [EvaluateStep(place, each) for each in table.evaluations if each.run == name]
    return steps


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
                f"The step '{step.title}' failed with exit code {code}, as said above; mend it and start again."
            )
        if not step.is_done():
            raise UserError(
                f"The step '{step.title}' ended without an error and is not done: run its command by itself."
            )
    return 0


def execute(words: list[str]) -> int:
    """Run a command in a process of its own, to which signals that ask to stop are passed on."""
    with subprocess.Popen(words) as process, _passing_on(process):
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
