"""What all parts of the proof share: lines of JSON, written as they are found, and measuring time."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

UNTIL = "PROOF_UNTIL"
"""The environment variable that tells a part when its time is over, in seconds since 1970."""

Line = dict[str, Any]


class Record:
    """A file of lines, each written when `add` returns, and so kept whatever ends the part later.

    Attributes:
        failed: whether any line reports a failure or a broken promise.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self.failed = path, False

    def add(self, **facts: Any) -> None:
        self.failed |= facts.get("holds") is False or "failure" in facts
        text = json.dumps(facts)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text, flush=True)

    def attempt(self, name: Line, work: Callable[[], Line | None]) -> None:
        """Add what `work` finds, if anything, or how it failed; in either case the part goes on."""
        try:
            found = work()
        except Exception as error:  # whatever a GPU may raise
            traceback.print_exc()
            found = {"failure": f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:300]}"}
        if found is not None:
            self.add(**name, **found)

    @property
    def exit_code(self) -> int:
        return int(self.failed)


def seconds_left() -> float:
    """Seconds until this part's time is over; an hour if no time is set."""
    return float(os.environ[UNTIL]) - time.time() if UNTIL in os.environ else 3600.0


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finish() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object], times: int, seconds: float = math.inf) -> list[float]:
    """Seconds of each call, the device's work included, after one that is not timed; fewer if time runs out."""
    work()
    finish()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < times and (not found or time.perf_counter() - began < seconds):
        start = time.perf_counter()
        work()
        finish()
        found.append(time.perf_counter() - start)
    return found


class InFloat64(TorchFunctionMode):
    """Within, `float()`, by which the plain implementations of losses ask for fp32, gives float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0].double() if func is Tensor.float else func(*args, **(kwargs or {}))


def error_of(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖ / ‖exact‖ in float64; infinite if anything found is not finite."""
    found, exact = found.detach().double(), exact.detach().double()
    if not bool(found.isfinite().all()):
        return math.inf
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))


def milliseconds(seconds: list[float]) -> float:
    return round(1e3 * median(seconds), 4)
