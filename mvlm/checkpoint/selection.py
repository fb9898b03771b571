"""Which checkpoint of a run is the best by its evaluations, and when these have stopped improving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mvlm.checkpoint.state import BestEvaluation
from mvlm.config.schema import Eval
from mvlm.errors import UserError

PUT_OFF = "eval/put_off"
"""Written in place of metrics when an evaluation is postponed."""


@dataclass(frozen=True)
class Selector:
    """Compares a run's evaluations by one metric.

    Attributes:
        lower: the lower the better.
        patience: evaluations in a row without improvement after which the run ends; 0 = never.
    """

    metric: str
    lower: bool
    patience: int

    @classmethod
    def of(cls, settings: Eval) -> Selector | None:
        """As a run's [eval] says; None if nothing is selected."""
        return cls(settings.select, settings.select_lower, settings.patience) if settings.select else None

    def judge(self, best: BestEvaluation | None, step: int, metrics: Mapping[str, float]) -> BestEvaluation | None:
        """The best evaluation up to this one, made after `step`; an equal one is no better, and NaN is the worst.

        Raises:
            UserError: it does not measure the metric.
        """
        if PUT_OFF in metrics:
            return best
        if self.metric not in metrics:
            raise UserError(f"eval.select is {self.metric!r}, which is not among {', '.join(metrics)}: name one.")
        value = metrics[self.metric]
        known = best if best and best.metric == self.metric else None
        if math.isnan(value):
            return replace(known, since=known.since + 1) if known else None
        if known is None or (value < known.value if self.lower else value > known.value):
            return BestEvaluation(self.metric, step, value)
        return replace(known, since=known.since + 1)

    def why_over(self, best: BestEvaluation | None) -> str:
        """Why the run is to end for lack of improvement; "" if it is not."""
        if not self.patience or best is None or best.metric != self.metric or best.since < self.patience:
            return ""
        times = f"{best.since} evaluations" if best.since > 1 else "1 evaluation"
        return f"{self.metric} has not been better than the {best.value:.6g} of step {best.step} for {times}"
