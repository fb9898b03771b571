"""Confidence intervals by the bootstrap (Efron & Tibshirani, 1993, chapter 13): percentiles over resampled data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
VALUES = 1 << 16
"""Units in the resamples that are scored together, which bounds the memory."""

Score = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Maps how often each of N units counts in each of R resamples, float64 RN, to R numbers by name; NaN if a resample has
no units for a number."""


def point(units: int, score: Score) -> dict[str, float]:
    """The numbers of the data themselves."""
    return {name: float(number) for name, [number] in score(np.ones((1, units))).items()}


def bootstrap(units: int, score: Score) -> dict[str, list[float]]:
    """The lower and upper end of the interval of each number that `score` gives.

    Args:
        units: what is drawn with replacement, such as images, each with all that belongs to it.
    """
    rng, together = np.random.default_rng(SEED), max(1, VALUES // units)
    parts = []
    for start in range(0, RESAMPLES, together):
        resamples = min(together, RESAMPLES - start)
        drawn = rng.integers(units, size=(resamples, units)) + units * np.arange(resamples)[:, None]
        parts.append(score(np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)))
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: np.nanquantile(np.concatenate([part[name] for part in parts]), tails).tolist() for name in parts[0]}


def explain(units: str) -> str:
    """A sentence for a protocol that says what the intervals are."""
    return f"Intervals hold {LEVEL:.0%} of {RESAMPLES} bootstrap resamples of {units}."


def nested(numbers: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """{"a/b/c": x} -> {"a": {"b": {"c": x}}}, in `tree`."""
    for path, number in numbers.items():
        *folders, name = path.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[name] = number
    return tree
