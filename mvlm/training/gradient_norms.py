"""The norm of each part's gradient, at any ZeRO stage, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mvlm.checkpoint.cut import cut_of
from mvlm.runtime import dist, replicas
from mvlm.training.zero.shares import ParamSlice

PARTS = ("vision", "text", "cross_image", "cross_text", "image_decoder", "heads")
"""First words of the names of parameters and modules, in the order in which they are reported; all others, such as
projections and temperature, count as heads."""


def part_of(name: str) -> str:
    """The part of the model that a parameter or module belongs to."""
    part = name.partition(".")[0]
    return part if part in PARTS else "heads"


class GradientParts:
    """Looks at gradients at the moment when the optimiser is about to use them.

    They are then where its state is, whatever DeepSpeed has done before: every rank sums the squares of what it has.
    By then they may be clipped, and in fp16 scaled, but all equally, so that the sums give the parts' shares of the
    global norm, which is known.

    Args:
        optimizers: those that step for this rank.
        slices: where this rank's pieces of the model's parameters lie in the optimiser's.
        names: of the model's parameters, by id.
    """

    def __init__(
        self, optimizers: Iterable[torch.optim.Optimizer], slices: Iterable[ParamSlice], names: dict[int, str]
    ):
        self.wanted = False
        self.parts = [part for part in PARTS if part in {part_of(name) for name in names.values()}]
        self._sums: dict[str, list[Tensor]] = {}
        self._pieces: dict[int, list[tuple[str, int, int]]] = {}  # part, start and end, by id of the optimiser's tensor
        for piece in slices:
            if cut_of(piece.parameter).of == 1 and replicas.place():
                continue  # what all ranks of a replica have counts once
            pieces = self._pieces.setdefault(id(piece.owner), [])
            part, start = part_of(names[id(piece.parameter)]), piece.start
            if pieces and pieces[-1][0] == part and pieces[-1][2] == start:
                start = pieces.pop()[1]
            pieces.append((part, start, piece.start + piece.length))
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._look)

    def norms(self, grad_norm: Tensor | float, device: torch.device) -> dict[str, Tensor]:
        """Of the step just made while `wanted`, by part; all ranks must call.

        Args:
            grad_norm: the global gradient's norm.
        """
        zero = torch.zeros((), device=device)
        sums = [sum((s.to(device, non_blocking=True) for s in self._sums.get(part, ())), zero) for part in self.parts]
        self._sums = {}
        squares = dist.all_reduce(torch.stack(sums))
        norms = (squares / squares.sum()).sqrt() * grad_norm
        return dict(zip(self.parts, norms.float(), strict=True))

    def _look(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self.wanted:
            return
        found: dict[str, list[Tensor]] = {}
        for group in optimizer.param_groups:
            for owner in group["params"]:
                if owner.grad is None:
                    continue
                for part, start, end in self._pieces.get(id(owner), ()):
                    found.setdefault(part, []).append(owner.grad.reshape(-1)[start:end])
        for part, slices in found.items():
            self._sums.setdefault(part, []).append(torch.nn.utils.get_total_norm(slices).float().square())
