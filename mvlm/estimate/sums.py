"""Counts what ranks that split a model's layers sum up as it runs (mvlm/training/tensor_parallel.py)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from mvlm.training.tensor_parallel import branches


@dataclass(frozen=True)
class Sums:
    """All-reduces of a forward and a backward pass among ranks that split layers: elements per pair, and how many."""

    elements: float
    times: int


class SumCounter:
    """Counts, within its context, what ranks that split a model's layers sum up in its passes.

    What recomputation sums up again counts again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.elements, self.times = 0, 0
        self._hooks: list[Any] = []
        self._branches = [branch for _, branch in branches(model)]

    def __enter__(self) -> SumCounter:
        for branch in self._branches:
            self._hooks.append(branch.last.register_forward_hook(self._summed))
            self._hooks.append(branch.owner.register_forward_pre_hook(partial(self._copied, branch.inputs)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _summed(self, _: nn.Module, __: object, result: Tensor) -> None:
        self._count(result)

    def _copied(self, inputs: int, _: nn.Module, given: tuple[Any, ...]) -> None:
        for x in {id(x): x for x in given[:inputs]}.values():
            if x.requires_grad:
                x.register_hook(self._count)

    def _count(self, tensor: Tensor) -> None:
        self.elements += tensor.numel()
        self.times += 1
