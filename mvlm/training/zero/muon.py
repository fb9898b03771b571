"""Muon for the matrices of transformer blocks and AdamW for everything else, at every ZeRO stage.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): a momentum of the gradient, Nesterov's, whose singular
values Newton and Schulz's iteration brings close to 1. Each update is scaled by 0.2 sqrt(max(rows, columns)), with
which its root mean square is about AdamW's, so that AdamW's learning rates and weight decay serve (Moonshot,
arXiv 2502.16982).

A matrix has to be whole for the iteration. The momentum is computed where ZeRO keeps the optimiser's state, in pieces;
these are summed over the ranks into whole matrices, each element from the one rank that has it, which rounds nothing;
each rank then takes its piece of the update. DeepSpeed's own Muon orthogonalises before it clips, so that the norm that
a run watches would be that of the updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mvlm.config.schema import Optim
from mvlm.runtime import dist

COEFFICIENTS, STEPS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7
MOMENTUM = "exp_avg"
"""As AdamW's first moment is called, in the optimiser's state and in checkpoints."""
AT_ONCE = 1 << 24
"""Elements of whole matrices that ranks exchange together."""


class MatrixPiece(NamedTuple):
    """This rank's piece of a matrix, possibly empty, in a tensor that the optimiser steps.

    Attributes:
        start: of the piece in the flattened owner.
        offset: of the piece in the flattened matrix.
    """

    owner: Tensor
    shape: tuple[int, int]
    start: int
    offset: int
    length: int


class Muon(torch.optim.Optimizer):
    """
    Args:
        groups: with `lr` and `weight_decay`; those with a true `muon` are of matrices.
        fused: AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], optim: Optim, fused: bool = True) -> None:
        super().__init__(groups, {"lr": optim.lr, "weight_decay": optim.weight_decay, "muon": False, "fused": fused})
        self.momentum = optim.momentum
        others = [group for group in self.param_groups if not group["muon"]]
        settings: dict[str, Any] = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "fused": fused}
        self._adamw = torch.optim.AdamW(others, **settings) if others else None
        if self._adamw:
            self._adamw.state = self.state
        self._pieces: dict[int, list[MatrixPiece]] = {}
        self._sum: Callable[[Tensor], Tensor] | None = None

    def bind(self, pieces: Iterable[MatrixPiece], is_split: bool) -> None:
        """Say where the matrices lie, in one order on all ranks; until then only AdamW's parameters are stepped.

        Args:
            is_split: among ranks.
        """
        for piece in pieces:
            self._pieces.setdefault(id(piece.owner), []).append(piece)
        self._sum = dist.all_reduce if is_split else None

    def has_one_moment(self, owner: Tensor) -> bool:
        """Whether a tensor that is stepped holds matrices, which have no second moment."""
        return id(owner) in self._pieces

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self._adamw:
            self._adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                for owner in group["params"]:
                    self._step_matrices(owner, group["lr"], group["weight_decay"])

    def _step_matrices(self, owner: Tensor, lr: float, weight_decay: float) -> None:
        pieces = self._pieces.get(id(owner), [])
        if not pieces or (owner.grad is None and self._sum is None):
            return
        state = self.state[owner]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(owner, memory_format=torch.preserve_format)
        if owner.grad is None:
            ahead = state[MOMENTUM].mul_(self.momentum).flatten()
        else:
            gradient = owner.grad.to(owner.dtype)
            state[MOMENTUM].lerp_(gradient, 1 - self.momentum)
            ahead = gradient.lerp(state[MOMENTUM], self.momentum).flatten()
        flat = owner.data.view(-1)
        for some in _in_buckets(pieces):
            for piece, matrix in zip(some, self._whole(ahead, some), strict=True):
                update = orthogonalize(matrix).mul_(scale(piece.shape))
                mine = update.flatten()[piece.offset : piece.offset + piece.length]
                weights = flat[piece.start : piece.start + piece.length]
                weights.mul_(1 - lr * weight_decay).add_(mine, alpha=-lr)

    def _whole(self, flat: Tensor, pieces: list[MatrixPiece]) -> list[Tensor]:
        """The matrices of which this rank has these pieces; all ranks must call if they are split."""
        if self._sum is None:
            return [flat[piece.start : piece.start + piece.length].view(piece.shape) for piece in pieces]
        sizes = [math.prod(piece.shape) for piece in pieces]
        together = flat.new_zeros(sum(sizes))
        for whole, piece in zip(together.split(sizes), pieces, strict=True):
            whole[piece.offset : piece.offset + piece.length] = flat[piece.start : piece.start + piece.length]
        parts = self._sum(together).split(sizes)
        return [part.view(piece.shape) for part, piece in zip(parts, pieces, strict=True)]


def _in_buckets(pieces: list[MatrixPiece]) -> Iterable[list[MatrixPiece]]:
    bucket: list[MatrixPiece] = []
    for piece in pieces:
        if bucket and sum(math.prod(each.shape) for each in (*bucket, piece)) > AT_ONCE:
            yield bucket
            bucket = []
        bucket.append(piece)
    yield bucket


def orthogonalize(matrix_MN: Tensor) -> Tensor:
    """The matrix with its singular values brought close to 1 by Newton and Schulz's iteration, in its own precision."""
    a, b, c = COEFFICIENTS
    tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = matrix_MN.mT if tall else matrix_MN
    x = x / (x.norm() + EPS)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def scale(shape: tuple[int, int]) -> float:
    """The factor that brings an orthogonal matrix's root mean square to about that of AdamW's updates, 0.2."""
    return 0.2 * math.sqrt(max(shape))


def operations(shape: tuple[int, int]) -> int:
    """Floating point operations of `orthogonalize`'s products, on whichever side is the smaller."""
    small, large = sorted(shape)
    return STEPS * (2 * 2 * small * small * large + 2 * small**3)
