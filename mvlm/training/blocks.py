"""The transformer blocks of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn

RUN = 4
"""The most blocks of a run. More would save the host little, and hand over their gradients so late that less of their
reduction overlaps with backward."""


def find_blocks(model: nn.Module) -> Iterator[Any]:
    """The transformer blocks: modules of one class in a list, each of several linear layers; none inside another."""
    return chain.from_iterable(find_runs(model))


def find_runs(model: nn.Module, chained: bool = False) -> Iterator[list[Any]]:
    """The blocks in runs: each block takes the result of the one before it, and otherwise what that one took.

    Args:
        chained: the blocks of any list do so; those of an `nn.Sequential` always do.
    """
    chained = chained or getattr(model, "chained", False)
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and _are_blocks(child):
            is_chain = (chained or isinstance(child, nn.Sequential)) and next(find_runs(child[0]), None) is None
            yield from _divide([*child], RUN if is_chain else 1)
        else:
            yield from find_runs(child, chained)


def evenly(blocks: list[Any], share: float) -> list[Any]:
    """A share of the blocks, spread evenly over all of them."""
    return [block for i, block in enumerate(blocks) if math.floor((i + 1) * share) > math.floor(i * share)]


def _are_blocks(modules: nn.ModuleList | nn.Sequential) -> bool:
    linears = [sum(isinstance(part, nn.Linear) for part in module.modules()) for module in modules]
    return len({type(module) for module in modules}) == 1 and min(linears) > 1


def _divide(blocks: list[Any], most: int) -> Iterator[list[Any]]:
    """Runs of at most so many blocks, as equal as they can be."""
    count = math.ceil(len(blocks) / most)
    for number in range(count):
        yield blocks[number * len(blocks) // count : (number + 1) * len(blocks) // count]
