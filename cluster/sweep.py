"""What a sweep tries: combinations of values, as the `key=value` words that `mvlm train` takes."""

from __future__ import annotations

import math
import random
from typing import Any

from mvlm.config.toml import as_toml

from .job import Sweep

SEED = 0  # of the draw: the same job file names the same runs again


def count(sweep: Sweep) -> int:
    """How many combinations there are."""
    return math.prod(map(len, sweep.values.values()))


def combinations(sweep: Sweep) -> list[dict[str, Any]]:
    """Every combination, the last key changing fastest, or `samples` of them, drawn with a fixed seed."""
    chosen: Any = range(count(sweep))
    if 0 < sweep.samples < len(chosen):
        chosen = sorted(random.Random(SEED).sample(chosen, sweep.samples))
    return [_combination(sweep.values, index) for index in chosen]


def _combination(values: dict[str, list[Any]], index: int) -> dict[str, Any]:
    """The combination of an index, made without those before it: there may be billions."""
    picked = {}
    for name in reversed(values):
        index, digit = divmod(index, len(values[name]))
        picked[name] = values[name][digit]
    return {name: picked[name] for name in values}


def override(name: str, value: Any) -> str:
    """`name=value` with the value in TOML."""
    return f"{name}={as_toml(value)}"
