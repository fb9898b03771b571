"""The random numbers that a module may draw in training, as dropout and stochastic depth do."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def is_random(module: nn.Module) -> bool:
    """Whether two passes through a module in training may differ: some part of it drops at a rate above 0.

    Modules that drop (torch's Dropout, timm's DropPath) have a rate; others have one, named so, to hand on, as to
    attention.
    """
    return any(
        isinstance(rate, float) and rate > 0 and ("drop" in name or "Drop" in type(part).__name__)
        for part in module.modules()
        for name, rate in vars(part).items()
    )


def seed_dropout(seed: int, step: int, start: int) -> None:
    """Seed the device's random numbers for a micro-batch by (seed, step, where it begins in the global batch).

    So their state need not be saved, and a pass can be repeated. This waits for no device.
    """
    mixed = np.random.SeedSequence((seed % 2**64, step, start)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed[0]))
