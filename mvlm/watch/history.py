"""A run's history, read from metrics.jsonl as it grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mvlm.checkpoint.description import LOSSES

BARS = "▁▂▃▄▅▆▇█"
RECENT = 5  # log lines whose median is the current speed


class History:
    """Training lines and evaluations. A resumed run repeats steps: the later line for a step counts."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.last: dict[str, Any] = {}  # training line
        self.evaluations: dict[int, dict[str, Any]] = {}
        self._steps: list[int] = []
        self._values: dict[str, list[float | None]] = {name: [] for name in (*LOSSES, "pairs_per_s")}

    def add(self, line: dict[str, Any]) -> None:
        step = line.get("step")
        if not isinstance(step, int):
            return
        if "loss" not in line:
            if "eval/put_off" not in line:
                self.evaluations[step] = line
            return
        while self._steps and self._steps[-1] >= step:
            self._steps.pop()
            for values in self._values.values():
                values.pop()
        self._steps.append(step)
        for name, values in self._values.items():
            values.append(line.get(name))
        self.last = line
        for beyond in [each for each in self.evaluations if each > step]:
            del self.evaluations[beyond]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The line of the latest step that was evaluated."""
        return self.evaluations[max(self.evaluations)] if self.evaluations else {}

    def curve(self, name: str) -> list[float]:
        """The finite values of one metric, in the order of steps."""
        return [value for value in self._values[name] if value is not None]

    @property
    def pairs_per_s(self) -> float | None:
        speeds = self.curve("pairs_per_s")[-RECENT:]
        return statistics.median(speeds) if speeds else None


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as a row of bars, each the mean of neighbours, scaled from the lowest to the highest mean."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [statistics.fmean(values[start:end]) for start, end in pairwise(edges)]
    lowest, highest = min(means), max(means)
    scale = (len(BARS) - 1) / (highest - lowest) if highest > lowest else 0.0
    return "".join(BARS[round((mean - lowest) * scale)] for mean in means)
