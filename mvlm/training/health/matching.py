"""Watches whether ITM has begun to learn: re-ranking by one that has not looks good and spoils what ITC has found."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean

UPDATES, READINGS = 1_000, 10  # that a verdict takes, at least
GUESS = math.log(3) - 2 / 3 * math.log(2)
"""The loss, in nats, of one who knows only that one example of three is a pair."""
LEARNED = 0.97 * GUESS


class MatchingWatch:
    """Of the losses at log steps. Negatives that ITC takes for pairs teach ITM nothing until it knows more than ITC."""

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
