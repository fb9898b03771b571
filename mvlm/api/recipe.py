"""A run's recipe chosen by the size of the corpus and the machine, with a reason for each choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvlm.config.toml import as_toml, read_tables

RECIPES = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True)
class RecipeChoice:
    """A key of the run TOML, `table.key`, its value, and why."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {as_toml(self.value)}  ({self.reason})"


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe, and what is chosen differently."""

    base: str
    reason: str
    choices: tuple[RecipeChoice, ...]

    def text(self, heading: str) -> str:
        """The whole as a run TOML."""
        tables = read_tables(RECIPES / self.base, "recipe")
        reasons = {choice.key: choice.reason for choice in self.choices}
        for choice in self.choices:
            table, key = choice.key.split(".")
            tables.setdefault(table, {})[key] = choice.value
        return f"# {heading}\n# {self.base}: {self.reason}.\n" + "".join(_tables(tables, reasons))


def _tables(tables: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    lines = []
    for name, table in tables.items():
        lines.append(f"\n[{name}]\n")
        for key, value in table.items():
            reason = reasons.get(f"{name}.{key}")
            lines.append(f"{key} = {as_toml(value)}{f'  # {reason}' if reason else ''}\n")
    return lines


EPOCHS, FEWEST_UPDATES = 15, 600
"""Passes over the pictures, and updates at least."""

EVALUATIONS = 5
"""In a run, the last among them."""

HELD_OUT_LIMIT = 1000
"""Images of an evaluation while training."""


def choose(images: int, train: Sequence[str], held_out: Sequence[str], run: Path, gpus: int) -> Recipe:
    """A recipe for so many images on so many GPUs, none meaning the CPU."""
    base, reason = ("small.toml", "a GPU trains it in hours") if gpus else ("tiny.toml", "a CPU trains it in minutes")
    batch = min(512 if gpus else 64, 1 << max(1, math.floor(math.log2(max(2, images)))))
    epochs, why = _epochs(images, batch)
    steps = math.ceil(epochs * images / batch)
    choices = [
        RecipeChoice("run.dir", str(run), "where everything goes"),
        RecipeChoice("data.train", list(train), f"{images:,} images"),
        RecipeChoice("data.epoch", "images", "every picture as often as any other, whatever its number of captions"),
        RecipeChoice("train.global_batch", batch, "as many pairs as are contrasted with each other"),
        RecipeChoice("train.epochs", epochs, why),
        RecipeChoice("checkpoint.every", max(1, steps // (2 * EVALUATIONS)), f"{2 * EVALUATIONS} in the run"),
    ]
    if held_out:
        choices += [
            RecipeChoice("data.eval", list(held_out), "held out"),
            RecipeChoice("eval.every", max(1, steps // EVALUATIONS), f"{EVALUATIONS} in the run"),
            RecipeChoice("eval.limit", HELD_OUT_LIMIT, "images, so that an evaluation is short"),
        ]
    return Recipe(base, reason, tuple(choices))


def _epochs(images: int, batch: int) -> tuple[int, str]:
    """Enough to learn something of few pictures, and few enough of many to end."""
    least = math.ceil(FEWEST_UPDATES * batch / images)
    if least > EPOCHS:
        return least, f"the fewest that make {FEWEST_UPDATES:,} updates of {batch} pairs"
    return EPOCHS, f"{math.ceil(EPOCHS * images / batch):,} updates of {batch} pairs"
