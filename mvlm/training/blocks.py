"""The transformer blocks of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn


def find_blocks(model: nn.Module) -> Iterator[Any]:
    """The transformer blocks: modules of one class in a list, each of several linear layers; none inside another."""
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)) and _are_blocks(child):
            yield from child
        else:
            yield from find_blocks(child)


def evenly(blocks: list[Any], share: float) -> list[Any]:
    """A share of the blocks, spread evenly over all of them."""
    return [block for i, block in enumerate(blocks) if math.floor((i + 1) * share) > math.floor(i * share)]


def _are_blocks(modules: nn.ModuleList | nn.Sequential) -> bool:
    linears = [sum(isinstance(part, nn.Linear) for part in module.modules()) for module in modules]
    return len({type(module) for module in modules}) == 1 and min(linears) > 1
