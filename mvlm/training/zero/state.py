"""AdamW's fp32 master weights and moments, as whole tensors or each rank's share, wherever DeepSpeed keeps them.

The EMA of the weights lies in the optimiser's state under EMA, beside the moments: DeepSpeed splits it among the ranks
and finds it as it does those.

Every method is called by all ranks, with the same parameter at the same time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mvlm.checkpoint.cut import TensorPart, cut_of, whole_shape
from mvlm.checkpoint.layout import EMA
from mvlm.training.zero.muon import MatrixPiece, Muon
from mvlm.training.zero.shares import ParamSlice, Read, gathered, is_saved_here

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroState(ABC):
    """The optimiser state of one engine.

    Args:
        optimizer: DeepSpeed's optimiser around ours, or ours if DeepSpeed puts none around it.
        ema: keep an EMA of each weight from `prepare` on.
        matrices: ids of the parameters that Muon updates, which have one moment.

    Attributes:
        is_split: each rank has a share of it.
    """

    is_split = True

    def __init__(self, optimizer: Any, ema: bool = False, matrices: frozenset[int] = frozenset()) -> None:
        self._optimizer, self.ema, self._matrices = optimizer, ema, matrices
        self._base: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    @abstractmethod
    def read(self, parameter: Parameter) -> dict[str, Tensor]:
        """The whole "weight" and its EMA; views if this rank has them whole. If a parameter is split by layers, this
        rank's part is the whole, here and in the other methods."""

    @abstractmethod
    def write(self, parameter: Parameter, whole: dict[str, Tensor]) -> None:
        """Set the whole "weight", EMA and moments, as far as given, and the copy that the model computes with."""

    def fill(self, parameter: Parameter, keys: Sequence[str], read: Read) -> None:
        """As `write`, but each rank reads its share of the tensors; `finish` must follow."""
        self.write(parameter, gathered(keys, read, tuple(parameter.shape)))

    @abstractmethod
    def finish(self) -> None:
        """Have the model compute with what its parameters were filled with; after the last of them."""

    @abstractmethod
    def slices(self, parameters: Iterable[Parameter]) -> Iterator[ParamSlice]:
        """This rank's piece of each parameter of which it has one."""

    def parts(
        self, parameters: Iterable[Parameter], moments: bool
    ) -> Iterator[tuple[Parameter, dict[str, TensorPart]]]:
        """What this rank has of each one's "weight", EMA and, if wanted and there, moments; nothing is exchanged.

        Every element belongs to one rank. They are views.
        """
        for number, (parameter, owner, start, length, offset) in enumerate(self.slices(parameters)):
            if not is_saved_here(parameter, number):
                continue
            state = self._base.state.get(owner, {})
            keys = (*(MOMENTS if moments else ()), EMA)
            flat = {"weight": owner.detach()} | {key: state[key] for key in keys if key in state}
            shape, cut = whole_shape(parameter), cut_of(parameter)
            own = slice(start, start + length)
            yield parameter, {key: TensorPart(one.flatten()[own], offset, shape, cut) for key, one in flat.items()}

    def tensors(self) -> Iterator[Tensor]:
        """The master weights and optimiser state that this rank has, as they lie in memory."""
        for owner in self._owners():
            yield owner
            yield from (
                kept for kept in self._base.state.get(owner, {}).values() if torch.is_tensor(kept) and kept.dim()
            )

    @abstractmethod
    def _owners(self) -> list[Tensor]:
        """The tensors that our optimiser keeps state for."""

    @abstractmethod
    def matrix_piece(self, parameter: Any) -> MatrixPiece:
        """This rank's piece of a matrix; every rank has one, even if it is empty."""

    def bind_matrices(self, parameters: Iterable[Any]) -> None:
        """Tell Muon, if that is the optimiser, where its matrices are; takes all of the model's parameters in order."""
        if isinstance(self._base, Muon):
            matrices = [parameter for parameter in parameters if id(parameter) in self._matrices]
            pieces = [self.matrix_piece(parameter) for parameter in matrices]
            self._base.bind(pieces, is_split=self.is_split)

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """One step of what this rank holds: ema = decay x ema + (1 - decay) x weight."""
        owners = self._owners()
        torch._foreach_lerp_([self._base.state[owner][EMA] for owner in owners], owners, 1 - decay)

    def prepare(self, updates: int) -> None:
        """Zero the moments, creating them if there are none yet, and set the number of updates that they come from.

        The EMA begins as the present weights.
        """
        for owner in self._owners():
            state = self._base.state[owner]
            one = isinstance(self._base, Muon) and self._base.has_one_moment(owner)
            for key in MOMENTS[:1] if one else MOMENTS:
                if key in state:
                    state[key].zero_()
                else:
                    state[key] = torch.zeros_like(owner, memory_format=torch.preserve_format)
            if self.ema:
                state[EMA] = owner.detach().clone(memory_format=torch.preserve_format)
            if isinstance(self._base, (torch.optim.AdamW, Muon)):
                device = owner.device if self._base.defaults["fused"] else "cpu"
                state["step"] = torch.tensor(float(updates), device=device)
            else:
                state["step"] = updates
        if hasattr(self._base, "ds_opt_adam"):
            self._count_to(updates)
        elif not isinstance(self._base, (torch.optim.AdamW, Muon)):
            # apex counts by group, DeepSpeed's fused one by either
            for group in self._base.param_groups:
                group["step"] = updates

    def forget_moments(self) -> None:
        """Forget the EMA as well, so that `prepare` makes new ones."""
        for owner in self._owners():
            self._base.state[owner].clear()

    def _count_to(self, updates: int) -> None:
        """DeepSpeed's AdamW for CPUs computes beta ** updates in C++ by repeated multiplication: repeat as many.

        Given the count, it would take the power instead, which differs in the last bits.
        """
        adam: Any = self._base
        weight, gradient, first, second = torch.zeros(4, 1)
        beta1, beta2 = adam.defaults["betas"]
        for step in range(updates + 1):
            adam.ds_opt_adam.adam_update(
                adam.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True, weight, gradient, first, second
            )
