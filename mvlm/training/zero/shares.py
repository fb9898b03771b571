"""Tensors of which each rank reads a share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mvlm.runtime import dist

Read = Callable[[str, int, int], Tensor]
"""By what a tensor is ("weight", "ema" or a moment) and where its elements laid flat begin and end -> these."""


def gathered(keys: Sequence[str], read: Read, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Whole tensors of a shape, of which each rank reads its share; all ranks must call."""
    count, ranks = math.prod(shape), dist.world()
    size = -(-count // ranks)
    start, stop = (min(count, size * rank) for rank in (dist.rank(), dist.rank() + 1))
    own = torch.zeros(1, len(keys), size, device=dist.device())
    for place, key in enumerate(keys):
        own[0, place, : stop - start] = read(key, start, stop)
    parts = dist.all_gather(own)
    return {key: parts[:, place].flatten()[:count].view(shape) for place, key in enumerate(keys)}
