"""The random numbers that a module may draw in training, as dropout and stochastic depth do."""

from __future__ import annotations

import numpy as np
import torch
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


def seed_dropout(seed: int, step: int, start: int) -> None:
    """Have a micro-batch's device randomness come from (seed, step, where it begins in the global batch).

    So none of it has to be saved, and a pass can be made twice. No device is waited for.
    """
    mixed = np.random.SeedSequence((seed % 2**64, step, start)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))
