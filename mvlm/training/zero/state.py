"""AdamW's fp32 master weights and moments, as whole tensors or each rank's share, wherever DeepSpeed keeps them.

The EMA of the weights lies in the optimiser's state under EMA, beside the moments: DeepSpeed
splits it among the ranks and finds it as it does those.

Every method is called by all ranks, with the same parameter at the same time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mvlm.checkpoint.cut import cut_of, whole_shape
from mvlm.checkpoint.layout import EMA
from mvlm.checkpoint.tensors import TensorPart
from mvlm.runtime import replicas
from mvlm.training.zero.muon import MatrixPiece, Muon
from mvlm.training.zero.shares import ParamSlice, Read, gathered, is_saved_here

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroState(ABC):
    """The optimiser state of one engine.

    Args:
        optimizer: DeepSpeed's optimiser around ours, or ours where DeepSpeed puts none around it.
        ema: keep an EMA of each weight from `prepare` on.
        matrices: ids of the parameters that Muon updates, which have one moment.
    """

    def __init__(self, optimizer: Any, ema: bool = False, matrices: frozenset[int] = frozenset()) -> None:
        self._optimizer, self.ema, self._matrices = optimizer, ema, matrices
        self._base: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    @abstractmethod
    def read(self, parameter: Parameter) -> dict[str, Tensor]:
        """The whole "weight" and its EMA; views where this rank has them whole. Of what is split by layers, its part is
        the whole here and in what follows."""

    @abstractmethod
    def write(self, parameter: Parameter, whole: dict[str, Tensor]) -> None:
        """Set the whole "weight", EMA and moments, as far as given, and the copy that the model computes with."""

    def fill(self, parameter: Parameter, keys: Sequence[str], read: Read) -> None:
        """Do as `write`, of tensors that each rank reads its share of; `finish` must follow."""
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

        Every element is one rank's. They are views.
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
        """This rank's piece of a matrix, of which every rank has one, if only of no element."""

    def bind_matrices(self, parameters: Iterable[Any]) -> None:
        """Tell Muon where its matrices are, where that is the optimiser; all of the model's parameters in order."""
        if isinstance(self._base, Muon):
            matrices = [parameter for parameter in parameters if id(parameter) in self._matrices]
            pieces = [self.matrix_piece(parameter) for parameter in matrices]
            self._base.bind(pieces, is_split=not isinstance(self, ZeroStage0State))

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """One step of what this rank holds: ema = decay x ema + (1 - decay) x weight."""
        owners = self._owners()
        torch._foreach_lerp_([self._base.state[owner][EMA] for owner in owners], owners, 1 - decay)

    def prepare(self, updates: int) -> None:
        """Zero moments, made where there are none yet, and the number of updates that they are said to come from.

        The EMA begins as the weights that are there.
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
        elif not isinstance(
            self._base, (torch.optim.AdamW, Muon)
        ):  # apex counts by group, DeepSpeed's fused one by either
            for group in self._base.param_groups:
                group["step"] = updates

    def forget_moments(self) -> None:
        """And the EMA, so that `prepare` makes new ones."""
        for owner in self._owners():
            self._base.state[owner].clear()

    def _count_to(self, updates: int) -> None:
        """DeepSpeed's AdamW for CPUs multiplies up beta ** updates in C++: do as many multiplications as it has done.

        It would take the power instead, which differs in the last bits.
        """
        adam: Any = self._base
        weight, gradient, first, second = torch.zeros(4, 1)
        beta1, beta2 = adam.defaults["betas"]
        for step in range(updates + 1):
            adam.ds_opt_adam.adam_update(
                adam.opt_id, step, 0.0, beta1, beta2, 1.0, 0.0, True, weight, gradient, first, second
            )


class ZeroStage0State(ZeroState):
    """Stage 0: every rank has all of it. In bf16 the masters are fp32 copies of the parameters."""

    def __init__(
        self, optimizer: Any, parameters: list[Parameter], ema: bool = False, matrices: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(optimizer, ema, matrices)
        self._masters: dict[int, Tensor] = {id(parameter): parameter for parameter in parameters}
        if optimizer is not self._base:
            for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                self._masters |= {id(parameter): master for parameter, master in zip(low, high, strict=True)}

    def read(self, parameter: Parameter) -> dict[str, Tensor]:
        master = self._masters[id(parameter)]
        return {"weight": master.data, **({EMA: self._base.state[master][EMA]} if self.ema else {})}

    def write(self, parameter: Parameter, whole: dict[str, Tensor]) -> None:
        master = self._masters[id(parameter)]
        master.data.copy_(whole["weight"])
        parameter.data.copy_(whole["weight"])
        for key in whole.keys() - {"weight"}:
            self._base.state[master][key].copy_(whole[key])

    def finish(self) -> None:
        """It does so already."""

    def slices(self, parameters: Iterable[Parameter]) -> Iterator[ParamSlice]:
        for parameter in parameters:
            yield ParamSlice(parameter, self._masters[id(parameter)], 0, parameter.numel(), 0)

    def matrix_piece(self, parameter: Parameter) -> MatrixPiece:
        rows, columns = parameter.shape
        return MatrixPiece(self._masters[id(parameter)], (rows, columns), 0, 0, parameter.numel())

    def parts(
        self, parameters: Iterable[Parameter], moments: bool
    ) -> Iterator[tuple[Parameter, dict[str, TensorPart]]]:
        """Whole ones, dealt to the replicas, as each has all."""
        yield from super().parts(list(parameters)[replicas.rank() :: replicas.world()], moments)

    def _owners(self) -> list[Tensor]:
        return list(self._masters.values())


class ZeroStage12State(ZeroState):
    """Stages 1 and 2: each rank has its part of every parameter group's parameters laid end to end."""

    def read(self, parameter: Parameter) -> dict[str, Tensor]:
        return _read(parameter, parameter.shape, self.ema)

    def write(self, parameter: Parameter, whole: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.data.copy_(whole["weight"])
        safe_set_full_fp32_param(parameter, whole["weight"])
        for key in whole.keys() - {"weight"}:
            safe_set_full_optimizer_state(parameter, whole[key], key)

    def fill(self, parameter: Any, keys: Sequence[str], read: Read) -> None:
        """The masters alone; from these `finish` makes what the model computes with."""
        if (mapping := parameter._hp_mapping) is None:
            return
        owner, start = self._owners()[mapping.param_group_index], mapping.hp_fragment_address.start
        offset, length = mapping.lp_fragment_address.start, mapping.hp_fragment_address.numel
        for key in keys:
            target = owner if key == "weight" else self._base.state[owner][key]
            target.data.view(-1)[start : start + length].copy_(read(key, offset, offset + length))

    def finish(self) -> None:
        self._optimizer.update_lp_params()

    def prepare(self, updates: int) -> None:
        super().prepare(updates)
        self._link()

    def _link(self) -> None:
        """Have DeepSpeed find the state of every parameter again.

        It makes these links when the first parameter group has been updated, before the others have state.
        """
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def slices(self, parameters: Iterable[Any]) -> Iterator[ParamSlice]:
        owners = self._owners()
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is not None:
                address, offset = mapping.hp_fragment_address, mapping.lp_fragment_address.start
                yield ParamSlice(parameter, owners[mapping.param_group_index], address.start, address.numel, offset)

    def matrix_piece(self, parameter: Any) -> MatrixPiece:
        groups = self._optimizer.bit16_groups
        group = next(n for n, parts in enumerate(groups) if any(part is parameter for part in parts))
        owner, (rows, columns) = self._owners()[group], parameter.shape
        if (mapping := parameter._hp_mapping) is None:
            return MatrixPiece(owner, (rows, columns), 0, 0, 0)
        start, offset = mapping.hp_fragment_address.start, mapping.lp_fragment_address.start
        return MatrixPiece(owner, (rows, columns), start, offset, mapping.hp_fragment_address.numel)

    def _owners(self) -> list[Tensor]:
        return [parameter for group in self._base.param_groups for parameter in group["params"]]


class ZeroStage3State(ZeroState):
    """Stage 3: each rank has its part of every parameter, laid end to end."""

    def read(self, parameter: Any) -> dict[str, Tensor]:
        return _read(parameter, parameter.ds_shape, self.ema)

    def write(self, parameter: Any, whole: dict[str, Tensor]) -> None:
        """DeepSpeed's own setter fails where a parameter does not divide by the ranks."""
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(whole["weight"])
        group, offset, size, start = self._position(parameter)
        master = self._owners()[group]
        for key, tensor in whole.items():
            part = tensor.flatten()[start : start + size]
            target = master if key == "weight" else self._base.state[master][key]
            target.data[offset : offset + size].copy_(torch.nn.functional.pad(part, (0, size - len(part))))

    def fill(self, parameter: Any, keys: Sequence[str], read: Read) -> None:
        if parameter.ds_zero_param_process_group is not None or parameter.nvme_swapper is not None:
            self.write(parameter, gathered(keys, read, tuple(parameter.ds_shape)))  # hpZ has it twice, NVMe elsewhere
            return
        group, offset, size, start = self._position(parameter)
        stop = min(start + size, parameter.ds_numel)
        master = self._owners()[group]
        parameter.partition()  # what is gathered is no more what is there
        for key in keys:
            part = read(key, min(start, stop), stop)
            part = torch.nn.functional.pad(part, (0, size - len(part)))
            target = master if key == "weight" else self._base.state[master][key]
            target.data[offset : offset + size].copy_(part)
            if key == "weight":
                parameter.ds_tensor.data.copy_(part)

    def finish(self) -> None:
        if lasting := self._optimizer.persistent_parameters:
            lasting[0].partition(lasting)
            lasting[0].all_gather(lasting)

    def slices(self, parameters: Iterable[Any]) -> Iterator[ParamSlice]:
        owners = self._owners()
        for parameter in parameters:
            group, offset, size, start = self._position(parameter)
            length = min(size, parameter.ds_numel - start)  # the last ranks' parts are filled up
            if length > 0:
                yield ParamSlice(parameter, owners[group], offset, length, start)

    def matrix_piece(self, parameter: Any) -> MatrixPiece:
        group, offset, size, start = self._position(parameter)
        length = max(0, min(size, parameter.ds_numel - start))
        rows, columns = parameter.ds_shape
        return MatrixPiece(self._owners()[group], (rows, columns), offset, min(start, parameter.ds_numel), length)

    def _position(self, parameter: Any) -> tuple[int, int, int, int]:
        """Which owner has this rank's part, where it begins there, its size, and where it begins in the parameter."""
        zero = self._optimizer
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        return group, offset, size, size * zero._get_param_partition_rank(parameter)

    def _owners(self) -> list[Tensor]:
        return list(self._optimizer.fp32_partitioned_groups_flat)


def _read(parameter: Any, shape: tuple[int, ...], ema: bool) -> dict[str, Tensor]:
    """What DeepSpeed gathers of a parameter that is divided among the ranks."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    whole = {"weight": safe_get_full_fp32_param(parameter)}
    whole |= {EMA: safe_get_full_optimizer_state(parameter, EMA)} if ema else {}
    return {key: tensor.reshape(shape) for key, tensor in whole.items()}
