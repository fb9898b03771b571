"""Evaluation on held-out data while a run trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mvlm.checkpoint.selection import Selector
from mvlm.checkpoint.state import TrainState
from mvlm.errors import HeldOutLost, UserError
from mvlm.training.engine import Engine
from mvlm.training.schedule import Schedule

Evaluate = Callable[[Any, Path, int, bool], tuple[dict[str, float], Path | None]]
"""(model, run folder, step, whether it is the last) -> flat metrics, and pictures; called on every rank at once."""


@dataclass
class Validation:
    """What evaluates, and what follows from the results.

    Attributes:
        evaluate: None = nothing is evaluated.
        selector: keeps the best checkpoint; None = nothing does.
        seconds: the longest that an evaluation has taken.
        lost: why the last could not be made, the same on all ranks.
    """

    evaluate: Evaluate | None
    selector: Selector | None
    seconds: float = 0.0
    lost: UserError | None = None

    def measure(self, engine: Engine, run: Path, step: int, is_last: bool) -> tuple[dict[str, float], Path | None]:
        """Evaluate the run's resulting weights, the averaged ones if there are any; all ranks must call.

        Returns:
            Metrics, none if the evaluation is `lost` or nothing is evaluated, and a picture if one was made.
        """
        if not self.evaluate:
            return {}, None
        began = time.perf_counter()
        engine.engine.eval()
        with torch.no_grad(), engine.ema_weights():
            try:
                found = self.evaluate(engine.model, run, step, is_last)
            except HeldOutLost as lost:  # caught here, so that the weights are swapped back and not their average saved
                self.lost, found = lost, ({}, None)
        self.seconds = max(self.seconds, time.perf_counter() - began)
        return found

    def coming_seconds(self, schedule: Schedule, step: int) -> float:
        """The longest that one has taken, if one follows a step that is made before the ranks agree again."""
        coming = (schedule.is_due(schedule.eval_every, step + ahead) for ahead in (1, 2))
        return self.seconds if any(coming) else 0.0

    def must_end(self, state: TrainState) -> bool:
        """Whether no step may follow, for lack of improvement or of the data to evaluate on."""
        return bool(self.lost or self.why_over(state))

    def why_over(self, state: TrainState) -> str:
        """Why the run ends early for lack of improvement; "" if it does not."""
        return self.selector.why_over(state.best) if self.selector else ""
