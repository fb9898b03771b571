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
"""What a tensor is ("weight", "ema" or a moment), and where its flattened elements begin and end -> these elements."""


class ParamSlice(NamedTuple):
    """Where a piece of a parameter lies in what the optimiser steps: elements of that tensor, flattened.

    Attributes:
        offset: where it begins in the flattened parameter.
    """

    parameter: Parameter
    owner: Tensor
    start: int
    length: int
    offset: int


def own_read(parameter: Parameter, read: Read) -> Read:
    """Given a reader of the whole parameter's elements, a reader of those of the part that this rank has."""
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

    Of a split parameter each has a part of its own; the others, of which all have the same, are dealt out to them.
    """
    return cut_of(parameter).of > 1 or number % replicas.size() == replicas.place()


def gathered(keys: Sequence[str], read: Read, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Whole tensors of a shape, each replica having read its share of them; all ranks must call."""
    count, ranks, rank = math.prod(shape), replicas.world(), replicas.rank()
    size = -(-count // ranks)
    start, stop = (min(count, size * number) for number in (rank, rank + 1))
    own = torch.zeros(1, len(keys), size, device=dist.device())
    for place, key in enumerate(keys):
        own[0, place, : stop - start] = read(key, start, stop)
    parts = replicas.all_gather(own)
    return {key: parts[:, place].flatten()[:count].view(shape) for place, key in enumerate(keys)}
