"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math


def lr_factor(step: int, warmup: int, total: int, floor: float) -> float:
    """Share of the peak learning rate at `step` (0 is the first update).

    Rises linearly over the first `warmup` updates, the first of which already moves, then falls along a cosine
    to `floor` at the last of `total` updates.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
