"""Evaluation as a separate job: each checkpoint of a run as it appears, so that training never waits.

A checkpoint is held by hard links in `RUN/evaluating/` while it is evaluated, so that the run may delete its own folder
meanwhile. Results go to `RUN/eval.jsonl`, which nothing else writes, in the form of metrics.jsonl's lines. If the run
leaves evaluation to this job (`eval.every = -1`) and names `eval.select`, the job keeps `checkpoints/best`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.checkpoint.description import CONFIG, EVALUATIONS, RUN_JSON, count_stages, described_in, fingerprint
from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.layout import (
    BEST,
    CHECKPOINTS,
    INDEX,
    UNREADABLE,
    best_checkpoint,
    candidates,
    find_damaged_file,
    step_folders,
    step_name,
    step_of,
)
from mvlm.checkpoint.placing import UNFINISHED
from mvlm.checkpoint.selection import Selector
from mvlm.checkpoint.state import BestEvaluation
from mvlm.config.load import load_stored_config
from mvlm.errors import UserError, cannot_write
from mvlm.evaluate.training import Evaluator
from mvlm.pretrained.runs import Loaded, load_trained
from mvlm.runtime import dist
from mvlm.runtime.files import append_durably, drop_torn_line, link_or_copy
from mvlm.runtime.log import rank_log
from mvlm.runtime.storage import write_durably

EVALUATING = "evaluating"
LOOK_S, DIGITS = 2.0, 16


@dataclass(frozen=True)
class Turn:
    """What to do next: evaluate a checkpoint that is held, end, or wait.

    Attributes:
        weights: a fingerprint that tells a step that was made again from what it was before.
    """

    held: Path | None = None
    step: int = 0
    weights: str = ""
    done: bool = False


class EvaluationJob:
    """Evaluates a run until it is done; all ranks must construct it and call `follow`.

    Args:
        data: held-out shards in place of the run's `data.eval`; empty = those.
        say: gets a sentence for each evaluation, on rank 0.
    """

    def __init__(self, run: Path, data: tuple[str, ...], say: Callable[[str], None]) -> None:
        self.run, self._data, self._say = run, data, say
        self._evaluator: Evaluator | None = None
        self._asked: tuple[Any, ...] = ()
        self._selector: Selector | None = None
        self._told: set[str] = set()

    def follow(self) -> None:
        """Return when every checkpoint of the finished run has been evaluated.

        Raises:
            UserError: another job follows the run, the data cannot be used, or the run folder cannot be written or is
                gone.
        """
        while not dist.as_rank_0(self.run.is_dir):
            time.sleep(LOOK_S)
        with _alone(self.run):
            while not (turn := dist.as_rank_0(self._next)).done:
                if turn.held:
                    self._evaluate(turn, turn.held)
                else:
                    time.sleep(LOOK_S)

    def _next(self) -> Turn:
        """On rank 0: what to do about the lowest step whose present weights have not been evaluated."""
        if not self.run.is_dir():
            raise UserError(f"{self.run} has been moved or deleted: follow the run where it is now.")
        done, known = is_done(self.run), {(line["step"], line["weights"]) for line in read_evaluations(self.run)}
        for folder in filter(step_of, reversed(step_folders(self.run))):
            try:
                weights = fingerprint(folder)[:DIGITS] if (folder / INDEX).is_file() else ""
                if weights and (step_of(folder), weights) not in known:
                    return Turn(self._hold(folder), step_of(folder), weights)
            except (FileNotFoundError, UserError) as error:
                self._tell_why_not(folder, error)
            except OSError as error:
                raise cannot_write(str(self.run / EVALUATING), error) from None
        self._restore_best()
        return Turn(done=done)

    def _tell_why_not(self, folder: Path, error: Exception) -> None:
        """Warn once, since a damaged checkpoint is found again at each look."""
        sentence = f"{folder.name} was deleted before it was evaluated: raise checkpoint.keep."
        if (folder / INDEX).is_file():
            sentence = f"{folder.name} is damaged and is not evaluated: {error}"
        if sentence not in self._told:
            self._told.add(sentence)
            rank_log.warning(sentence)

    def _hold(self, folder: Path) -> Path:
        """Copy a checkpoint by hard links; raises `UserError` or `FileNotFoundError` if it is not whole."""
        held = self.run / EVALUATING / folder.name
        shutil.rmtree(held, ignore_errors=True)
        _link(folder, held)
        if reason := find_damaged_file(held, hashes=False):
            raise UserError(f"{reason}.")
        return held

    def _evaluate(self, turn: Turn, held: Path) -> None:
        loaded: Loaded[Any] = load_trained(held, dist.device())
        config = load_stored_config(described_in(held) / CONFIG)
        self._selector = Selector.of(config.eval) if config.eval.every < 0 else None
        pictures = config.log.pictures if config.objectives.image else 0
        data = dataclasses.replace(config.data, eval=self._data or config.data.eval)
        if not data.eval:
            raise UserError(f"{self.run} names no data.eval: add --data SHARDS.")
        asked = data, config.task, config.objectives, config.model.image_size, config.eval, pictures
        if self._evaluator is None or self._asked != asked:  # the run may have been resumed with other settings
            self._evaluator, self._asked = Evaluator(*asked), asked
        metrics, _ = self._evaluator(loaded.model, self.run, turn.step, True)
        dist.as_rank_0(lambda: self._record(turn, metrics))

    def _record(self, turn: Turn, metrics: dict[str, float]) -> None:
        line = {"step": turn.step, **metrics, "weights": turn.weights}
        if self._selector:
            self._selector.judge(None, turn.step, metrics)
        try:
            append_durably(self.run / EVALUATIONS, json.dumps(line) + "\n")
            best = self._best()
            if best and best.step == turn.step:
                write_durably(self.run / CHECKPOINTS / BEST, step_name(best.step))
            self._release_others(best)
        except OSError as error:
            raise cannot_write(str(self.run / EVALUATIONS), error) from None
        shown = "  ".join(f"{name.removeprefix('eval/')} {value:.3f}" for name, value in metrics.items())
        self._say(f"step {turn.step}  held out: {shown}{'  (the best)' if best and best.step == turn.step else ''}")

    def _best(self) -> BestEvaluation | None:
        """The best of all evaluations so far, by the latest one of each step."""
        if self._selector is None:
            return None
        best: BestEvaluation | None = None
        latest = {line["step"]: line for line in read_evaluations(self.run)}
        for step, metrics in sorted(latest.items()):
            if self._selector.metric in metrics:  # missing if eval.select, and so what was measured, was different then
                best = self._selector.judge(best, step, metrics)
        return best

    def _release_others(self, best: BestEvaluation | None) -> None:
        """Delete what is held except the best, which the run may be about to delete, as it was not the best before."""
        for folder in (self.run / EVALUATING).glob("step_*"):
            if best is None or folder.name != step_name(best.step):
                shutil.rmtree(folder, ignore_errors=True)

    def _restore_best(self) -> None:
        """Put the best back if the run deleted it just before it became the best."""
        pointer = self.run / CHECKPOINTS / BEST
        for held in (self.run / EVALUATING).glob("step_*"):
            if best_checkpoint(self.run) is None and pointer.exists() and pointer.read_text() == held.name:
                partial = pointer.with_name(held.name + UNFINISHED)
                shutil.rmtree(partial, ignore_errors=True)
                _link(held, partial)
                os.rename(partial, pointer.with_name(held.name))


def is_done(run: Path) -> bool:
    """Whether a run has reached the last step of its last stage, or has ended early."""
    try:
        facts = json.loads((run / RUN_JSON).read_text(encoding="utf-8"))
        steps, goes_on = facts["steps"], count_stages(run) > len(facts.get("stages", [None]))
        checkpoint = candidates(run).first
        state, settings = read_state(checkpoint), load_stored_config(described_in(checkpoint) / CONFIG).eval
    except (*UNREADABLE, UserError):
        return False
    selector = Selector.of(settings)
    return bool((state.step >= steps and not goes_on) or (selector and selector.why_over(state.best)))


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of eval.jsonl, in the order in which they were written; raises `UserError` if one is damaged."""
    path, found = run / EVALUATIONS, []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}, line {number}, is not a metrics line: delete that line.") from None
    return found


def _link(folder: Path, to: Path) -> None:
    """Copy a checkpoint by hard links, or in full if the disk has none."""
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        place = to / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, place)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Follow the run alone, once a line torn by an earlier job is removed; raises `UserError` if another job does."""
    with ExitStack() as stack:

        def begin() -> None:
            try:
                (run / EVALUATING).mkdir(exist_ok=True)
                lock = stack.enter_context(open(run / EVALUATING / "lock", "w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                drop_torn_line(run / EVALUATIONS)
            except BlockingIOError:
                raise UserError(f"Another `mvlm evaluate --follow` is at {run}: end that one first.") from None
            except OSError as error:
                raise cannot_write(str(run / EVALUATING), error) from None

        dist.as_rank_0(begin)
        yield
