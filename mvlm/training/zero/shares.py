"""Tensors of which each rank has a share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from mvlm.checkpoint.cut import cut_of, whole_shape
from mvlm.runtime import dist, replicas

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


def own_read(parameter: Parameter, read: Read) -> Read:
    """What reads elements of the part of a parameter that this rank has, by what reads elements of the whole."""
    cut, count = cut_of(parameter), math.prod(whole_shape(parameter))
    if cut.of == 1:
        return read

    def part(key: str, start: int, stop: int) -> Tensor:
        if start == stop:
            return read(key, start, stop)
        first, places = cut.positions(start, stop, count)
        return read(key, first, cut.position(stop - 1, count) + 1)[places]

    return part


def is_saved_here(parameter: Parameter, number: int) -> bool:
    """Whether this rank, of those of its replica, saves what it has of the model's parameter of that number.

    Of what is split each has a part of its own; the others, which all have alike, are dealt to them.
    """
    return cut_of(parameter).of > 1 or number % replicas.size() == replicas.place()


def gathered(keys: Sequence[str], read: Read, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Whole tensors of a shape, of which each replica reads its share; all ranks must call."""
    count, ranks, rank = math.prod(shape), replicas.world(), replicas.rank()
    size = -(-count // ranks)
    start, stop = (min(count, size * number) for number in (rank, rank + 1))
    own = torch.zeros(1, len(keys), size, device=dist.device())
    for place, key in enumerate(keys):
        own[0, place, : stop - start] = read(key, start, stop)
    parts = replicas.all_gather(own)
    return {key: parts[:, place].flatten()[:count].view(shape) for place, key in enumerate(keys)}
