"""Confidence intervals by the bootstrap (Efron & Tibshirani, 1993, chapter 13): percentiles over resampled data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


def bootstrap(units: int, score: Callable[[np.ndarray], dict[str, float]]) -> dict[str, list[float]]:
    """The lower and upper end for each number that `score` gives.

    Args:
        units: what is drawn with replacement, such as images, each with all that belongs to it.
        score: from how often each unit was drawn, float64 [units], to numbers by name; those are left out of which
            nothing was drawn.
    """
    rng = np.random.default_rng(SEED)
    drawn = [
        score(np.bincount(rng.integers(units, size=units), minlength=units).astype(float)) for _ in range(RESAMPLES)
    ]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    names = dict.fromkeys(name for numbers in drawn for name in numbers)
    return {
        name: np.quantile([numbers[name] for numbers in drawn if name in numbers], tails).tolist() for name in names
    }


def explain(units: str) -> str:
    """A sentence of a protocol: what the intervals hold."""
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
