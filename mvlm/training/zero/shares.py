"""Tensors of which each rank has a share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from mvlm.checkpoint.tensors import TensorPart
from mvlm.runtime import dist

Read = Callable[[str, int, int], Tensor]
"""By what a tensor is ("weight", "ema" or a moment) and where its elements laid flat begin and end -> these."""


class ParamSlice(NamedTuple):
    """Where a piece of a parameter lies in what the optimiser steps: elements of that tensor laid flat.

    Attributes:
        offset: where it begins in the parameter laid flat.
    """

    parameter: Parameter
    owner: Tensor
    start: int
    length: int
    offset: int


Parts = tuple[Parameter, dict[str, TensorPart]]
"""A parameter, and what a rank has of its weight, average and moments."""


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
