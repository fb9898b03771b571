"""Watches whether ITM has begun to learn: re-ranking by a head that has not looks fine and spoils ITC's results."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean

UPDATES, READINGS = 1_000, 10  # the least for a verdict
GUESS = math.log(3) - 2 / 3 * math.log(2)
"""The loss, in nats, of knowing only that one example in three is a pair."""
LEARNED = 0.97 * GUESS


class MatchingWatch:
    """Judges the losses at log steps. Negatives that ITC takes for pairs teach ITM nothing until it surpasses ITC."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque()
        self._said = False

    def judge(self, step: int, loss: float) -> str:
        """What to tell the person at the terminal, once an attempt; "" = nothing."""
        self._seen.append((step, loss))
        while len(self._seen) > READINGS and step - self._seen[1][0] >= UPDATES:
            self._seen.popleft()
        mean = fmean(loss for _, loss in self._seen)
        covered = step - self._seen[0][0] >= UPDATES and len(self._seen) >= READINGS
        if self._said or not covered or not mean > LEARNED:
            return ""
        self._said = True
        return (
            f"ITM has learned nothing in {UPDATES:,} updates: its loss is {mean:.3f}, and {GUESS:.3f} is a guess. "
            'Resume with objectives.itm_negatives = "uniform", and with "hard" once it has learned from these.'
        )
