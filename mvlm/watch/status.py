"""A job's status, from the files in its run folder alone, since it may run on another machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvlm.checkpoint.description import EVALUATIONS, METRICS, RUN_JSON, count_stages
from mvlm.checkpoint.layout import ATTEMPTS, STATE, best_checkpoint, candidates, step_of
from mvlm.checkpoint.selection import Selector
from mvlm.checkpoint.state import BestEvaluation
from mvlm.config.schema import Eval
from mvlm.errors import UserError
from mvlm.runtime.jsonl import JsonLinesTail, json_object
from mvlm.runtime.wording import counted
from mvlm.training.health.heartbeat import QUIET_AFTER, duration, period_s
from mvlm.watch.history import History
from mvlm.watch.liveness import HeartbeatReader, Liveness

HANG_MINUTES = 15.0  # the configuration's default, until run.json exists


@dataclass(frozen=True)
class Status:
    """The status of a run. What is unknown is None.

    Args:
        state: "waiting" (no folder yet), "starting", "running", "hanging", "dead", "stopped" or "done".
        note: a sentence with more detail, or "".
        seconds_left: of training at the current speed, without evaluations.
        metrics: the last training line.
        evaluation: the last evaluation line.
        stage: the current one, such as "stage 2 of 3 (large)".
        best: the step of the best checkpoint by eval.select; best_score is its value of that metric.
        seen: ranks with a heartbeat in this folder; nodes with separate run folders write theirs there.
        quiet: ranks without signs of life.
        still_s: since the last sign of life from any rank.
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
    stage: str | None = None
    best: int | None = None
    best_score: dict[str, float] = field(default_factory=dict)
    world: int | None = None
    hosts: int | None = None
    device: str | None = None
    zero_stage: int | None = None
    seen: int = 0
    quiet: tuple[int, ...] = ()
    still_s: float | None = None


class Watcher:
    """Looks at a run repeatedly, reading only what is new.

    Args:
        clock: returns the current time, to compare with times of hosts and file servers.
    """

    def __init__(self, run: Path, clock: Callable[[], float] = time.time) -> None:
        self.run, self._clock = run, clock
        self._lines, self._heartbeats = JsonLinesTail(run / METRICS), HeartbeatReader(run, clock)
        self._evaluations = JsonLinesTail(run / EVALUATIONS)
        self.history = History()

    def look(self) -> Status:
        """The current status."""
        lines = self._lines.new()
        if self._lines.replaced:
            self.history.clear()
            self._evaluations = JsonLinesTail(self.run / EVALUATIONS)
        for line in (*lines, *self._evaluations.new()):
            self.history.add(line)
        facts = _object(self.run / RUN_JSON)
        if not self.run.is_dir():
            return Status(str(self.run), "waiting", "there is no such folder yet")
        number, claimed = self._attempt()
        checkpoint, age = self._checkpoint()
        config = facts.get("config", {})
        hang_minutes = config.get("train", {}).get("hang_minutes", HANG_MINUTES)
        liveness = self._heartbeats.read(number, hang_minutes)
        steps, step = facts.get("steps"), self.history.last.get("step", 0)
        quiet_s = min(liveness.age_s.values(), default=None)
        saved = self._saved_state()
        goes_on = count_stages(self.run) > len(facts.get("stages", [None]))  # another stage is to begin
        goes_on = goes_on or saved.get("unevaluated", False)
        state, note = _judge(step, None if goes_on else steps, checkpoint, liveness)
        if ended := _ended_early(config.get("eval", {}), saved):
            state, note = "done", ended
        best, score = self._best(config.get("eval", {}).get("select", ""))
        if not liveness.beats and state == "starting" and claimed > QUIET_AFTER * period_s(hang_minutes):
            state, note = "dead", f"attempt {number} began {duration(claimed)} ago and has sent no heartbeat"
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
            stage=_stage(facts),
            best=best,
            best_score=score,
            world=facts.get("world"),
            hosts=len(set(facts.get("hosts", []))) or None,
            device=facts.get("device"),
            zero_stage=facts.get("zero_stage"),
            seen=len(liveness.beats),
            quiet=tuple(sorted(liveness.quiet)),
            still_s=quiet_s,
        )

    def _attempt(self) -> tuple[int, float]:
        """The newest attempt's number, and how many seconds ago it began."""
        numbers = [int(p.stem) for p in (self.run / ATTEMPTS).glob("*.json") if p.stem.isdecimal()]
        if not numbers:
            return 0, 0.0
        claim = _object(self.run / ATTEMPTS / f"{max(numbers):04d}.json")
        return max(numbers), max(0.0, self._clock() - claim.get("at", self._clock()))

    def _best(self, metric: str) -> tuple[int | None, dict[str, float]]:
        """The step of the best checkpoint, and its value of the metric."""
        folder = best_checkpoint(self.run)
        if folder is None:
            return None, {}
        value = self.history.evaluations.get(step_of(folder), {}).get(metric)
        return step_of(folder), {} if value is None else {metric: value}

    def _saved_state(self) -> dict[str, Any]:
        """The latest checkpoint's state; not read by mvlm/checkpoint/integrity.py, which imports torch."""
        try:
            return _object(candidates(self.run).first / STATE)
        except UserError:
            return {}

    def _checkpoint(self) -> tuple[int | None, float | None]:
        """The latest checkpoint's step, and how many seconds old it is."""
        try:
            latest = candidates(self.run).first
            return step_of(latest), max(0.0, self._clock() - latest.stat().st_mtime)
        except (OSError, UserError):
            return None, None


def _judge(step: int, steps: int | None, checkpoint: int | None, liveness: Liveness) -> tuple[str, str]:
    """The state and the note."""
    if steps and step >= steps and checkpoint == steps:
        return "done", ""
    if not liveness.beats:
        return "starting", "no rank has sent a heartbeat yet"
    if liveness.all_quiet:
        still = duration(min(liveness.age_s.values()))
        if checkpoint is not None and checkpoint >= step:
            return "stopped", f"it ended {still} ago with everything saved; the same command resumes it"
        again = f"{counted(step - (checkpoint or 0), 'step')} will be repeated" if step else "it had made no step"
        return "dead", f"no rank has sent a heartbeat for {still}; {again} when the same command is given"
    if hang := liveness.hang:
        return "hanging", hang
    doing = next(iter(liveness.beats.values())).doing
    if liveness.ahead_s:
        return "running", (
            f"{doing}, or it has ended: the heartbeats' time is {duration(liveness.ahead_s)} ahead of this machine's "
            "clock; watch until there are new ones"
        )
    return "running", doing


def _ended_early(settings: dict[str, Any], saved: dict[str, Any]) -> str:
    """Why a run has ended before its last step; "" if it has not.

    Args:
        saved: the state of its latest checkpoint.
    """
    known = {name: settings[name] for name in ("select", "select_lower", "patience") if name in settings}
    selector = Selector.of(Eval(**known))
    if not selector or not selector.patience:
        return ""
    try:
        return selector.why_over(BestEvaluation(**saved["best"]))
    except (TypeError, KeyError):
        return ""


def _stage(facts: dict[str, Any]) -> str | None:
    stages, number = facts.get("stages", []), facts.get("stage", 0)
    if not stages:
        return None
    name = stages[number]["name"]
    return f"stage {number + 1} of {len(stages)}" + (f" ({name})" if name else "")


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none, or it is still being written."""
    try:
        return json_object(path.read_bytes()) or {}
    except OSError:
        return {}
