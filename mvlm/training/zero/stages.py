"""Where each ZeRO stage has the optimiser's state: all of it on every rank, or a share on each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mvlm.checkpoint.cut import TensorPart
from mvlm.checkpoint.layout import EMA
from mvlm.runtime import replicas
from mvlm.training.zero.muon import MatrixPiece
from mvlm.training.zero.shares import ParamSlice, Read, gathered
from mvlm.training.zero.state import ZeroState


def state_of(
    optimizer: Any, stage: int, trained: list[Parameter], ema: bool, matrices: frozenset[int] = frozenset()
) -> ZeroState:
    """The state of an engine; for the other arguments see `ZeroState`.

    Args:
        trained: all parameters that the optimiser updates, in the model's order.
    """
    if stage == 0:
        return ZeroStage0State(optimizer, trained, ema, matrices)
    if stage == 3:
        return ZeroStage3State(optimizer, ema, matrices)
    return ZeroStage12State(optimizer, ema, matrices)


class ZeroStage0State(ZeroState):
    """Stage 0: every rank has all of it. In bf16 the masters are fp32 copies of the parameters."""

    is_split = False

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
        """Nothing is left to do: `fill` sets the parameters too."""

    def slices(self, parameters: Iterable[Parameter]) -> Iterator[ParamSlice]:
        for parameter in parameters:
            yield ParamSlice(parameter, self._masters[id(parameter)], 0, parameter.numel(), 0)

    def matrix_piece(self, parameter: Parameter) -> MatrixPiece:
        rows, columns = parameter.shape
        return MatrixPiece(self._masters[id(parameter)], (rows, columns), 0, 0, parameter.numel())

    def parts(
        self, parameters: Iterable[Parameter], moments: bool
    ) -> Iterator[tuple[Parameter, dict[str, TensorPart]]]:
        """Whole tensors, dealt out to the replicas, as each has all."""
        yield from super().parts(list(parameters)[replicas.rank() :: replicas.world()], moments)

    def _owners(self) -> list[Tensor]:
        return list(self._masters.values())


class ZeroStage12State(ZeroState):
    """Stages 1 and 2: each rank has its part of every parameter group's parameters laid end to end."""

    def read(self, parameter: Parameter) -> dict[str, Tensor]:
        """Summed as bits, only one rank's for each element: a sum of numbers would turn -0 into 0."""
        keys = ["weight", EMA] if self.ema else ["weight"]
        bits_KN = torch.zeros(len(keys), parameter.numel(), dtype=torch.int32, device=parameter.device)
        for _, owner, start, length, offset in self.slices([parameter]):
            for key, bits_N in zip(keys, bits_KN, strict=True):
                own = owner.detach() if key == "weight" else self._base.state[owner][key]
                bits_N[offset : offset + length] = own.flatten()[start : start + length].view(torch.int32)
        wholes_KN = replicas.all_reduce(bits_KN).view(torch.float32)
        return {key: whole_N.view(parameter.shape) for key, whole_N in zip(keys, wholes_KN, strict=True)}

    def write(self, parameter: Parameter, whole: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.data.copy_(whole["weight"])
        safe_set_full_fp32_param(parameter, whole["weight"])
        for key in whole.keys() - {"weight"}:
            safe_set_full_optimizer_state(parameter, whole[key], key)

    def fill(self, parameter: Any, keys: Sequence[str], read: Read) -> None:
        """Fill only the masters; from these `finish` makes what the model computes with."""
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
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = {"weight": safe_get_full_fp32_param(parameter)}
        whole |= {EMA: safe_get_full_optimizer_state(parameter, EMA)} if self.ema else {}
        return {key: tensor.reshape(parameter.ds_shape) for key, tensor in whole.items()}

    def write(self, parameter: Any, whole: dict[str, Tensor]) -> None:
        """Not by DeepSpeed's own setter, which fails if the ranks do not divide a parameter."""
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
        parameter.partition()  # what was gathered is out of date
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
            length = min(size, parameter.ds_numel - start)  # the last ranks' parts are padded
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
