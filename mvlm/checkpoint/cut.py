"""Parts of tensors that ranks split among themselves, and where each part lies in the whole."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """Of a tensor flattened into `rows` equal rows: the `place`-th of `of` equal runs of each row, concatenated."""

    rows: int = 1
    place: int = 0
    of: int = 1

    def before(self, position: int, count: int) -> int:
        """How many of its elements come before a position in the whole, which has `count` elements."""
        if self.of == 1:
            return position
        row = count // self.rows
        run = row // self.of
        return position // row * run + min(max(position % row - self.place * run, 0), run)

    def position(self, element: int, count: int) -> int:
        """Where one of its elements lies in the whole, which has `count` elements."""
        if self.of == 1:
            return element
        run = count // (self.rows * self.of)
        return (element // run * self.of + self.place) * run + element % run

    def positions(self, start: int, stop: int, count: int) -> tuple[int, slice | Tensor]:
        """Where elements `start` to before `stop`, one or more, lie in the whole: the first, and all relative to it."""
        first, last = self.position(start, count), self.position(stop - 1, count)
        if last - first == stop - 1 - start:
            return first, slice(0, last - first + 1)
        run = count // (self.rows * self.of)
        element = torch.arange(start, stop, device="cpu")
        return first, (element // run * self.of + self.place) * run + element % run - first

    def taken_from(self, whole: Tensor) -> Tensor:
        """Its elements of a whole tensor, flattened."""
        return whole.reshape(self.rows, self.of, -1)[:, self.place].reshape(-1)


WHOLE = Cut()


class TensorPart(NamedTuple):
    """Elements of a flattened tensor, or of a cut of it, from element `start` on."""

    elements: Tensor
    start: int
    shape: tuple[int, ...]
    """Of the whole tensor."""
    cut: Cut = WHOLE

    @property
    def is_whole(self) -> bool:
        return self.elements.numel() == math.prod(self.shape)


def cut_of(parameter: Any) -> Cut:
    """The cut of a parameter that this rank holds."""
    return getattr(parameter, "cut", WHOLE)


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter, whether tensor parallelism or ZeRO stage 3 has split it or not."""
    return tuple(getattr(parameter, "whole_shape", getattr(parameter, "ds_shape", parameter.shape)))
