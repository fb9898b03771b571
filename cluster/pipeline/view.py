"""The state of a pipeline, by what its steps have left on disk and what its back-end says about them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mvlm.errors import ExitCode
from mvlm.runtime.wording import counted

from ..attempt import JobAttempt
from ..logs import attempt_folder, attempt_numbers, launcher_log
from ..record import last_training_line
from ..slurm.backend import noted_attempts
from .file import TRAINING
from .graph import Graph
from .proof import rows
from .submission import Submission
from .words import JOB

State = Literal["unchanged", "waiting", "running", "done", "stopped", "failed", "blocked", "not run"]
ENDED = ("unchanged", "done", "stopped", "failed", "blocked", "not run")


@dataclass(frozen=True)
class StepView:
    """The state of a step.

    Attributes:
        seconds: from its first attempt to its end, or until now.
        made: such as "1,637 rows" or "step 600".
        log: the file to read.
        why: what the scheduler says about it.
    """

    name: str
    kind: str
    state: State
    needs: list[str]
    started: float | None
    seconds: float | None
    made: str
    exit_code: int | None
    attempts: int
    log: str
    why: str = ""


@dataclass(frozen=True)
class QueueAnswer:
    """What a back-end says about a step that it knows: that it waits, runs, or never will."""

    state: State
    why: str = ""


def views(
    graph: Graph, submission: Submission, answers: Mapping[str, QueueAnswer] | None = None, active: bool = True
) -> list[StepView]:
    """The views of all steps, each after those that it waits for.

    Args:
        answers: of the back-end, by step; None if it has not been asked.
        active: the pipeline is being driven, or in a scheduler's queue.
    """
    found: dict[str, StepView] = {}
    for name in submission.order:
        tried = attempts(submission, name) if name in submission.queued else []
        answer = (answers or {}).get(name)
        state = answer.state if answer else _state(submission, name, tried, active)
        if state in ("waiting", "not run") and _is_blocked(submission, name, found):
            state = "blocked"
        last = tried[-1] if tried else None
        end = None if last is None else last.ended or time.time()
        found[name] = StepView(
            name,
            graph.pipeline.steps[name].kind,
            state,
            graph.needs[name],
            tried[0].started if tried else None,
            max(0.0, end - tried[0].started) if end is not None else None,  # by the clocks of up to two hosts
            _made(graph, name) if state in ("running", "done", "unchanged") else "",
            last.exit_code if last else None,
            len(tried),
            str(_log(submission, name) or "") if name in submission.queued else "",
            answer.why if answer else "",
        )
    return list(found.values())


def as_table(found: list[StepView]) -> str:
    """The views as a table for a terminal."""
    head = ("step", "kind", "state", "time", "made", "exit", "log")
    lines = [head, *((v.name, v.kind, state_words(v), duration(v.seconds), v.made, _exit(v), v.log) for v in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def state_words(view: StepView) -> str:
    words = view.state + (f" ({view.why})" if view.why else "")
    return words + (f", attempt {view.attempts}" if view.attempts > 1 else "")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _exit(view: StepView) -> str:
    return "" if view.exit_code is None else str(view.exit_code)


def _is_blocked(submission: Submission, name: str, before: Mapping[str, StepView]) -> bool:
    """Whether a step that it depends on, directly or not, has failed; SLURM says so only of direct dependents."""
    return any(before[need].state in ("failed", "blocked") for need in submission.queued[name].needs)


def _state(submission: Submission, name: str, tried: list[JobAttempt], active: bool) -> State:
    if name not in submission.queued:
        return "unchanged"
    code = tried[-1].exit_code if tried else None
    if code is not None:
        return "done" if code == 0 else "stopped" if code == ExitCode.REQUEUE else "failed"
    if tried:
        return "running" if active else "failed"
    return "waiting" if active else "not run"


def attempts(submission: Submission, name: str) -> list[JobAttempt]:
    """The attempts at a queued step since it was submitted."""
    if record := submission.record(name):
        return record.attempts
    first = submission.queued[name].first
    return [one for one in noted_attempts(submission.folder(name) / JOB) if one.number >= first]


def _made(graph: Graph, name: str) -> str:
    step = graph.pipeline.steps[name]
    if step.kind in TRAINING:
        line = last_training_line(Path(step.writes[0]))
        return f"step {line['step']:,}" if line else ""
    counts = [count for path in step.writes if "://" not in path and (count := rows(path)) is not None]
    return counted(sum(counts), "row") if counts else ""


def log_place(submission: Submission, name: str) -> Path:
    """The folder of a step's newest attempt: that of its ranks, unless the step around them has failed since."""
    begun = {}
    for folder in (submission.folder(name), submission.folder(name) / JOB):
        if numbers := attempt_numbers(folder):
            begun[folder] = attempt_folder(folder, numbers[-1]).stat().st_mtime
    return max(begun, key=lambda folder: begun[folder], default=submission.folder(name))


def _log(submission: Submission, name: str) -> Path | None:
    folder = log_place(submission, name)
    if not (numbers := attempt_numbers(folder)):
        return None
    log = launcher_log(folder, numbers[-1])
    return log if log.exists() else attempt_folder(folder, numbers[-1])


def as_facts(submission: Submission, found: list[StepView]) -> dict[str, Any]:
    """The views for programs."""
    return {"pipeline": submission.path, "backend": submission.backend, "steps": [vars(view) for view in found]}
