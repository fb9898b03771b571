"""Parameters that are not trained, wherever DeepSpeed keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from mvlm.checkpoint.cut import TensorPart, cut_of, whole_shape
from mvlm.runtime import dist, replicas
from mvlm.training.zero.shares import is_saved_here


class Frozen:
    """Parameters that are not trained: whole fp32 weights like those of `ZeroState`, and nothing else.

    If the model computes in 16 bits, the weights as they were given are kept on the CPU for the next checkpoint.

    Args:
        parameters: before DeepSpeed takes the model.
        low_precision: DeepSpeed is going to round them.
        sharded: DeepSpeed is going to split them among the ranks (stage 3).
    """

    def __init__(self, parameters: list[Parameter], low_precision: bool, sharded: bool) -> None:
        self._parameters: list[Any] = list(parameters)
        self._given = {id(p): p.detach().clone() for p in parameters} if low_precision else {}
        self._sharded = sharded

    def parts(self) -> Iterator[tuple[Any, dict[str, TensorPart]]]:
        """What this rank saves of them, as `ZeroState.parts`."""
        split: list[Any] = [] if self._given or not self._sharded else self._parameters
        dealt = self._parameters[replicas.rank() :: replicas.world()] if not split else []
        for number, parameter in enumerate(dealt):
            if is_saved_here(parameter, number):
                weight = self._given.get(id(parameter), parameter.data)
                shape, cut = whole_shape(parameter), cut_of(parameter)
                yield parameter, {"weight": TensorPart(weight.flatten(), 0, shape, cut)}
        for parameter in split:
            own = parameter.ds_tensor
            start = own.ds_numel * dist.rank()
            if (length := min(own.ds_numel, parameter.ds_numel - start)) > 0:
                yield parameter, {"weight": TensorPart(own.data[:length], start, tuple(parameter.ds_shape))}

    def write(self, parameter: Any, whole: dict[str, Tensor]) -> None:
        if id(parameter) in self._given:
            self._given[id(parameter)].copy_(whole["weight"])
        if not self._sharded:
            parameter.data.copy_(whole["weight"])
            return
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(whole["weight"])
