"""What a sweep tries: combinations of values, as the `key=value` words that `mvlm train` takes."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from cluster.job import Sweep

SEED = 0  # of the draw: the same job file names the same runs again


def combinations(sweep: Sweep) -> list[dict[str, Any]]:
    """Every combination, the last key changing fastest, or `samples` of them, drawn with a fixed seed."""
    count = math.prod(map(len, sweep.values.values()))
    chosen: Any = range(count)
    if 0 < sweep.samples < count:
        chosen = sorted(random.Random(SEED).sample(chosen, sweep.samples))
    return [_combination(sweep.values, index) for index in chosen]


def _combination(values: dict[str, list[Any]], index: int) -> dict[str, Any]:
    picked = {}
    for name in reversed(values):
        index, place = divmod(index, len(values[name]))
        picked[name] = values[name][place]
    return {name: picked[name] for name in values}


def override(name: str, value: Any) -> str:
    """`name=value` with the value in TOML."""
    return f"{name}={_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # TOML's escapes are JSON's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    return str(value)
