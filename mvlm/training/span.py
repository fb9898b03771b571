"""The ranks and micro-batches that whole ITM groups are spread over, and what travels among them.

Everything travels by all-gathers of fixed shapes, so that no host waits for what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BUFFER = 256 * 2**20
"""Bytes of tokens that a rank gathers at a time, unless one pair of each rank takes more."""


@dataclass(frozen=True)
class Span:
    """The pairs of a few whole groups: `waves` micro-batches of each of `ranks` consecutive ranks.

    J = waves x ranks x pairs are in the order of the global batch; m = waves x pairs are a rank's own.

    Attributes:
        pairs: of a micro-batch.
        place: of this rank among them.
        gather: a tensor of the same shape from each of the ranks -> ranks x the shape, without gradient.
    """

    ranks: int
    waves: int
    pairs: int
    place: int
    gather: Callable[[Tensor], Tensor]

    @property
    def is_local(self) -> bool:
        """Whether each micro-batch holds whole groups."""
        return self.ranks == self.waves == 1

    def start(self, wave: int) -> int:
        """The row of J at which this rank's micro-batch begins."""
        return (wave * self.ranks + self.place) * self.pairs

    def whole(self, own_m: Tensor) -> Tensor:
        """m x ... -> J x ..."""
        gathered = self.gather(own_m).unflatten(1, (self.waves, self.pairs))
        return gathered.transpose(0, 1).flatten(0, 2)

    def fetch(self, own_m: Tensor, row_m: Tensor) -> Tensor:
        """What is in the row of J that each own pair names: m x ... -> m x ..."""
        rank_m, slot_m = self._owner(row_m)
        found_m = torch.zeros_like(own_m)
        for piece in self._pieces(own_m):
            everybody = self.gather(own_m[piece])
            is_here = (slot_m >= piece.start) & (slot_m < piece.stop)
            taken = everybody[rank_m, (slot_m - piece.start).clamp(0, everybody.shape[1] - 1)]
            found_m = torch.where(is_here.view(-1, *[1] * (own_m.ndim - 1)), taken, found_m)
        return found_m

    def give_back(self, gradient_m: Tensor, row_Rm: Tensor) -> Tensor:
        """The gradient of `fetch`: at what was fetched -> at its source.

        Args:
            row_Rm: the rows that all pairs of all ranks name.
        """
        own_m = torch.zeros_like(gradient_m)
        for piece in self._pieces(gradient_m):
            everybody = self.gather(gradient_m[piece])
            rank_Rk, slot_Rk = self._owner(row_Rm[:, piece])
            is_mine = (rank_Rk == self.place).view(*rank_Rk.shape, *[1] * (gradient_m.ndim - 1))
            own_m.index_add_(0, slot_Rk.flatten(), everybody.where(is_mine, 0).flatten(0, 1))
        return own_m

    def _owner(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """The rank of each row of J, and its place among that rank's own."""
        micro_batch = row // self.pairs
        return micro_batch % self.ranks, micro_batch // self.ranks * self.pairs + row % self.pairs

    def _pieces(self, own_m: Tensor) -> list[slice]:
        """Slices of the own pairs, so few at a time that those of all ranks fit the buffer."""
        count = len(own_m)
        most = max(1, BUFFER // (self.ranks * own_m[0].numel() * own_m.element_size()))
        return [slice(first, min(first + most, count)) for first in range(0, count, most)]


def span_shape(group: int, world: int, pairs: int) -> tuple[int, int]:
    """Of the smallest span of whole groups, its ranks and the micro-batches of each, for `world` ranks with `pairs`."""
    at_once = world * pairs
    ranks = math.lcm(pairs, group) // pairs if at_once % group == 0 else world
    return ranks, math.lcm(at_once, group) // at_once


def exchange_bytes(shape: tuple[int, int], pairs: int, token_bytes: tuple[int, int]) -> float:
    """The most that a rank holds to exchange negatives, besides their tokens in a micro-batch's passes.

    Args:
        shape: as `span_shape` gives it.
        pairs: of a micro-batch.
        token_bytes: of an image's tokens and of a text's.
    """
    ranks, waves = shape
    if ranks == waves == 1:
        return 0.0
    largest, own = max(token_bytes), waves * pairs
    gathered = min(max(BUFFER, ranks * largest), ranks * own * largest)
    cached = 2 * own * sum(token_bytes) if waves > 1 else 0  # negatives, and the gradients at own tokens
    return float(2 * gathered + cached)  # what is gathered, and what is taken from it for own pairs


class Exchange(torch.autograd.Function):
    """Own tokens -> those of the negatives; their gradient is exchanged in turn."""

    @staticmethod
    def forward(ctx: Any, own_BLD: Tensor, span: Span, row_B: Tensor, row_RB: Tensor) -> Tensor:
        ctx.span, ctx.row_RB = span, row_RB
        return span.fetch(own_BLD, row_B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BLD: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.span.give_back(gradient_BLD, ctx.row_RB), None, None, None


class Known(torch.autograd.Function):
    """Own tokens -> those of the negatives, already known, as is the gradient at the own tokens as negatives."""

    @staticmethod
    def forward(ctx: Any, own_BLD: Tensor, negative_BLD: Tensor, gradient_BLD: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_BLD)
        return negative_BLD.view_as(negative_BLD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0], None, None
