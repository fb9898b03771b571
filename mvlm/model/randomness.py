"""Whether a module draws random numbers in training, as dropout and stochastic depth do."""

from __future__ import annotations

from torch import nn


def is_random(module: nn.Module) -> bool:
    """Whether two passes through it in training may differ: some part of it has a rate above 0 at which it drops.

    A rate stands in a module for dropping (torch's Dropout, timm's DropPath) or, by such a name, in one that hands it
    on, as to attention.
    """
    return any(
        isinstance(rate, float) and rate > 0 and ("drop" in name or "Drop" in type(part).__name__)
        for part in module.modules()
        for name, rate in vars(part).items()
    )
