"""What a person and a machine see of a run: progress bar, metrics.jsonl, trackers. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mvlm.checkpoint.description import LOSSES, METRICS
from mvlm.checkpoint.selection import PUT_OFF
from mvlm.config.schema import Log
from mvlm.errors import cannot_write
from mvlm.runtime import dist
from mvlm.runtime.files import drop_torn_line
from mvlm.training.logging.trackers import PATIENCE, Follower, end_all, followers, numbers

HURRY = 5.0  # seconds that trackers get when a run ends on an error


class Monitor:
    """Reports of one rank; on ranks other than 0 it writes nothing. All ranks must construct it.

    Args:
        run: has `run.json`.
        log: which trackers follow.

    Raises:
        UserError: metrics.jsonl cannot be written.
    """

    def __init__(self, run: Path, first_step: int, total_steps: int, log: Log) -> None:
        self.main = dist.rank() == 0
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._first, self._total, self._began = first_step, total_steps, time.monotonic()
        self._followers: list[Follower] = []
        dist.as_rank_0(partial(self._open, run / METRICS))
        if not self.main:
            return
        self._followers = followers(run, first_step, log, self.say)
        self._progress = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[report]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=total_steps, completed=first_step, report="")

    def has_file(self) -> bool:
        """Whether metrics.jsonl is still the file that lines are written to."""
        try:
            return not self.main or os.path.samestat(os.stat(self._file.name), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def reopen(self) -> None:
        """Write to metrics.jsonl as it is now; raises as the constructor does. For rank 0 only."""
        metrics = Path(self._file.name)
        self._file.close()
        self._open(metrics)

    def _open(self, metrics: Path) -> None:
        try:
            drop_torn_line(metrics)
            self._file = open(metrics, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise cannot_write(str(metrics), error, "move away what lies there, or free some room") from None

    def __enter__(self) -> Monitor:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish(done=False, patience=HURRY)
        with contextlib.suppress(OSError):  # every line was flushed when it was written
            if self._progress:
                self._progress.stop()
                self._file.close()

    def finish(self, done: bool, patience: float = PATIENCE) -> None:
        """Let the trackers take what they have not taken yet, and end.

        Args:
            done: the run has reached its last step.
            patience: seconds that all of them get together.
        """
        end_all(self._followers, done, patience)
        self._followers = []

    def advance(self, step: int) -> None:
        if self._progress:
            self._progress.update(self._task, completed=step)

    def log(self, metrics: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl, which must hold `step`; floats read back exactly, NaN and infinity as null.

        Raises:
            UserError: it cannot be written.
        """
        if not self.main or not self._progress:
            return
        try:
            self._write(metrics)
        except OSError as error:
            raise cannot_write(self._file.name, error) from None
        report = "  ".join(f"{name} {metrics[name]:z.3f}" for name in LOSSES if name in metrics)
        report += f"  {metrics['pairs_per_s']:.0f} pairs/s" if "pairs_per_s" in metrics else ""
        if "loss" not in metrics:
            self.say(f"step {metrics['step']}  held out: {_evaluated(metrics)}")
            return
        self._progress.update(self._task, report=report)
        if self._progress.disable:
            self.say(f"step {metrics['step']}  {report}{self._left(metrics['step'])}")

    def _left(self, step: int) -> str:
        """The time to the end, at the pace so far, evaluations included."""
        pace = (time.monotonic() - self._began) / max(1, step - self._first)
        seconds = pace * (self._total - step)
        unit, name = next(pair for pair in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= pair[0] or pair[0] == 1)
        return f"  {seconds / unit:.0f} {name} left" if step < self._total else ""

    def _write(self, metrics: dict[str, Any]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for follower in self._followers:
            follower.log(metrics["step"], numbers(metrics))

    def picture(self, step: int, path: Path) -> None:
        """Hand pictures that lie in the run folder to the trackers."""
        for follower in self._followers:
            follower.picture(step, path)

    def say(self, sentence: str) -> None:
        """Tell the person at the terminal, above the progress bar."""
        if self.main:
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _evaluated(metrics: dict[str, Any]) -> str:
    if PUT_OFF in metrics:
        return (
            f"put off, as one took {metrics[PUT_OFF]:.0f} s, too large a share of the time trained since (eval.share)"
        )
    return "  ".join(f"{name.removeprefix('eval/')} {value:z.3f}" for name, value in metrics.items() if name != "step")
