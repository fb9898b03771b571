"""What is measured of held-out data as a run trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.checkpoint.selection import Selector
from mvlm.checkpoint.state import TrainState

Evaluate = Callable[[Any, Path, int, bool], tuple[dict[str, float], Path | None]]
"""(model, run folder, step, whether it is the last) -> flat metrics, and pictures; called on every rank at once."""


@dataclass
class Validation:
    """Who measures it, and what follows from that.

    Attributes:
        evaluate: None = nothing is evaluated.
        selector: keeps the best checkpoint; None = nothing does.
    """

    evaluate: Evaluate | None
    selector: Selector | None

    def why_over(self, state: TrainState) -> str:
        """Why the run ends early: evaluations have found nothing better for so long; "" where it does not."""
        return self.selector.why_over(state.best) if self.selector else ""
