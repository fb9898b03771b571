"""How much of a step's host time the CPU spends computing, and how much launching: python benchmarks/host/dispatch.py

    python benchmarks/host/dispatch.py [--rounds 12]

Runs the step of this benchmark, eager, at stages 0 and 1, and then each of its operations again: once as it was, below
autograd, and once replaced by a view, which computes nothing. The difference is what the CPU computed, including
allocating results, and what a GPU would compute instead; the rest of the step is Python, autograd, the dispatcher and
DeepSpeed. All three take turns in one process, and the least time of each is kept, since other work on the machine only
adds to it. Writes results/dispatch.json, and the table into README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.host.__main__ import GOALS, Clock, cpu_name, make_engine
from benchmarks.kept import code_version, put_between

FOLDER = Path(__file__).parent
FILE, README = FOLDER / "results/dispatch.json", FOLDER / "README.md"
BEGIN, END = "<!-- dispatch -->\n\n", "\n\n<!-- end of dispatch -->"
STAGES = 0, 1
LAUNCH_US = 4.0
"""Assumed, not measured: what a launch takes a GPU's host, beyond what the dispatcher does on a CPU too."""

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Computed(TorchDispatchMode):
    """Records the operations called within, except views and those that only allocate memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not (func.is_view or name.startswith(("aten::empty", "aten::detach", "aten::new_empty", "c10d::"))):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def replay(calls: list[Call]) -> None:
    for func, args, kwargs in calls:
        func(*args, **kwargs)


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(stage: int, rounds: int) -> dict[str, Any]:
    """Least CPU milliseconds of a step, of its operations, and of the same number of views."""
    with tempfile.TemporaryDirectory() as folder:
        engine, batch = make_engine(stage, False, folder)
        clock = Clock(engine)

        def step(number: int) -> dict[str, float]:
            return clock.time(lambda: engine.step([batch], 0.5, number))

        for number in range(3):
            step(number)
        with Computed() as computed:
            step(3)
        x = torch.zeros(4)
        views: list[Call] = [(torch.ops.aten.alias.default, (x,), {})] * len(computed.calls)
        found: dict[str, list[float]] = {"step": [], "operations": [], "views": []}
        with torch.no_grad():
            replay(computed.calls)
        for number in range(4, 4 + rounds):
            found["step"].append(sum(step(number).values()))
            with torch.no_grad():
                found["operations"].append(seconds(lambda: replay(computed.calls)))
                found["views"].append(seconds(lambda: replay(views)))
    by_name = Counter(func._schema.name for func, _, _ in computed.calls)
    return {
        "least_ms": {name: round(1000 * min(times), 2) for name, times in found.items()},
        "operations": len(computed.calls),
        "most": by_name.most_common(12),
    }


def table(found: dict[str, Any]) -> str:
    heads = "stage", "a step", "of which the CPU computes", "all else", "goal", "operations", "all else, with launches"
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for stage, one in found["stages"].items():
        least = one["least_ms"]
        computes = least["operations"] - least["views"]
        rest = least["step"] - computes
        launched = rest + one["operations"] * LAUNCH_US / 1000
        cells = [stage, *(f"{ms:.0f} ms" for ms in (least["step"], computes, rest, GOALS["eager"]))]
        lines.append("| " + " | ".join([*cells, f"{one['operations']:,}", f"{launched:.0f} ms"]) + " |")
    return "\n".join(lines)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=12)
    arguments = words.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"commit": code_version(), "torch": torch.__version__, "cpu": cpu_name()}
    found["stages"] = {str(stage): measure(stage, arguments.rounds) for stage in STAGES}
    found["load"] = os.getloadavg()[0]
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    put_between(README, BEGIN, END, table(found))


if __name__ == "__main__":
    main()
