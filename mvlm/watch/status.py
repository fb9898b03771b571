"""What can be said of a job by the files in its run folder alone, which may be another machine's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvlm.checkpoint.layout import candidates, step_of
from mvlm.errors import UserError
from mvlm.training.health.heartbeat import QUIET_AFTER, duration, period_s
from mvlm.watch.history import History
from mvlm.watch.lines import Lines
from mvlm.watch.signs import Ears, Signs

METRICS, DESCRIPTION, ATTEMPTS = "metrics.jsonl", "run.json", "attempts"
HANG_MINUTES = 15.0  # the configuration's default, where run.json is not there yet


@dataclass(frozen=True)
class Status:
    """How a run stands. What is not known is None.

    Args:
        state: "waiting" (no folder yet), "starting", "running", "hanging", "dead", "stopped" or "done".
        note: a sentence that says more, or nothing.
        seconds_left: of training at the present speed, evaluations left out.
        metrics: the last training line.
        evaluation: the last one's line.
        seen: ranks with a heartbeat in this folder; nodes with run folders of their own leave theirs there.
        quiet: ranks without a sign of life.
        still_s: since the last sign of life of any rank.
    """

    run: str
    state: str
    note: str = ""
    attempt: int = 0
    step: int = 0
    steps: int | None = None
    pairs_per_s: float | None = None
    seconds_left: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    checkpoint: int | None = None
    checkpoint_age_s: float | None = None
    world: int | None = None
    hosts: int | None = None
    device: str | None = None
    zero_stage: int | None = None
    seen: int = 0
    quiet: tuple[int, ...] = ()
    still_s: float | None = None


class Watcher:
    """Looks at a run again and again and reads only what is new.

    Args:
        clock: the time now, which hosts' and file servers' times are compared with.
    """

    def __init__(self, run: Path, clock: Callable[[], float] = time.time) -> None:
        self.run, self._clock = run, clock
        self._lines, self._ears = Lines(run / METRICS), Ears(run, clock)
        self.history = History()

    def look(self) -> Status:
        """How the run stands now."""
        lines = self._lines.new()
        if self._lines.replaced:
            self.history.clear()
        for line in lines:
            self.history.add(line)
        facts = _object(self.run / DESCRIPTION)
        if not self.run.is_dir():
            return Status(str(self.run), "waiting", "there is no such folder yet")
        number, claimed = self._attempt()
        checkpoint, age = self._checkpoint()
        config = facts.get("config", {})
        hang_minutes = config.get("train", {}).get("hang_minutes", HANG_MINUTES)
        signs = self._ears.listen(number, hang_minutes)
        steps, step = facts.get("steps"), self.history.last.get("step", 0)
        quiet_s = min(signs.age_s.values(), default=None)
        state, note = _judge(step, steps, checkpoint, signs)
        if not signs.beats and state == "starting" and claimed > QUIET_AFTER * period_s(hang_minutes):
            state, note = "dead", f"attempt {number} began {duration(claimed)} ago and has given no sign of life"
        speed, batch = self.history.pairs_per_s, config.get("train", {}).get("global_batch")
        left = (steps - step) * batch / speed if steps and batch and speed and state == "running" else None
        return Status(
            run=str(self.run),
            state=state,
            note=note,
            attempt=number,
            step=step,
            steps=steps,
            pairs_per_s=speed,
            seconds_left=left,
            metrics=self.history.last,
            evaluation=self.history.evaluation,
            checkpoint=checkpoint,
            checkpoint_age_s=age,
            world=facts.get("world"),
            hosts=len(set(facts.get("hosts", []))) or None,
            device=facts.get("device"),
            zero_stage=facts.get("zero_stage"),
            seen=len(signs.beats),
            quiet=tuple(sorted(signs.quiet)),
            still_s=quiet_s,
        )

    def _attempt(self) -> tuple[int, float]:
        """The newest attempt's number, and how many seconds ago it began."""
        numbers = [int(p.stem) for p in (self.run / ATTEMPTS).glob("*.json") if p.stem.isdecimal()]
        if not numbers:
            return 0, 0.0
        claim = _object(self.run / ATTEMPTS / f"{max(numbers):04d}.json")
        return max(numbers), max(0.0, self._clock() - claim.get("at", self._clock()))

    def _checkpoint(self) -> tuple[int | None, float | None]:
        """The latest checkpoint's step, and how many seconds old it is."""
        try:
            latest = candidates(self.run).first
            return step_of(latest), max(0.0, self._clock() - latest.stat().st_mtime)
        except (OSError, UserError):
            return None, None


def _judge(step: int, steps: int | None, checkpoint: int | None, signs: Signs) -> tuple[str, str]:
    """State and note."""
    if steps and step >= steps and checkpoint == steps:
        return "done", ""
    if not signs.beats:
        return "starting", "no rank has given a sign of life yet"
    if signs.all_quiet:
        still = duration(min(signs.age_s.values()))
        if checkpoint is not None and checkpoint >= step:
            return "stopped", f"it ended {still} ago with everything saved; the same command goes on"
        again = f"{step - (checkpoint or 0)} steps will be made again" if step else "it had made no step"
        return "dead", f"no rank has given a sign of life for {still}; {again} when the same command is given"
    if hang := signs.hang:
        return "hanging", hang
    return "running", next(iter(signs.beats.values())).doing


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or one that is just being written."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
