"""DeepSpeed behind a small surface: one step, and every parameter as a whole fp32 tensor. Only this file imports it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mvlm import dist
from mvlm.batch import IGNORE, Batch, Encoded, Losses, Pool
from mvlm.config import Config
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM
from mvlm.train.optim import build_adamw, parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A model, its optimiser and DeepSpeed's wrapping of both.

    Args:
        model: on the CPU, with its initial fp32 weights, equal on every rank.
        ds_config: as `ds_config.resolve` returns it.

    Raises:
        UserError: the device cannot compute in the precision asked for.
    """

    def __init__(self, model: MaskVLM, config: Config, ds_config: dict[str, Any]) -> None:
        deepspeed = _import_deepspeed()
        self.config, self.device = config, dist.device()
        zero = ds_config["zero_optimization"]
        self.stage: int = zero.get("stage", 0)
        low_precision = [name for name in ("bf16", "fp16") if (ds_config.get(name) or {}).get("enabled")]
        for name in low_precision:
            if not getattr(deepspeed.accelerator.get_accelerator(), f"is_{name}_supported")():
                raise UserError(f"The DeepSpeed JSON enables {name}, which {self.device} cannot compute: delete it.")
        self._plain = self.stage == 0 and not low_precision  # DeepSpeed keeps the optimiser as it is
        self._clip = config.optim.clip if self._plain else 0.0
        if self._plain:  # clipped here, where the norm can be had
            ds_config = ds_config | {"gradient_clipping": 0.0}
        groups = parameter_groups(model, config.optim)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        if (zero.get("offload_optimizer") or {}).get("device", "none") != "none":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(
                groups,
                lr=config.optim.lr,
                betas=config.optim.betas,
                eps=config.optim.eps,
                weight_decay=config.optim.weight_decay,
                adamw_mode=True,
            )
        else:
            optimizer = build_adamw(groups, config.optim, self.device)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
        self.model: MaskVLM = self.engine.module
        self.grad_norm: Tensor | float | None = None

    def step(self, micro_batches: list[Batch], lr_factor: float, step: int) -> Losses:
        """One update from this rank's micro-batches of a global batch.

        Returns:
            The mean over this rank's micro-batches of each loss, on the device; their mean over ranks is the
            global batch's loss.
        """
        micro_batches = [batch.to(self.device) for batch in micro_batches]
        self.engine.train()
        seed_dropout(self.config.run.seed, step, dist.rank())
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_factor
        parts: list[Losses] = []
        for batch, pool in zip(micro_batches, self._pools(micro_batches), strict=True):
            losses = self.engine(batch, pool)
            self.engine.backward(sum(getattr(self.config.objectives, name) * loss for name, loss in losses.items()))
            if self._plain and self.engine.is_gradient_accumulation_boundary():
                limit = self._clip or float("inf")
                self.grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
            self.engine.step()
            parts.append({name: loss.detach() for name, loss in losses.items()})
        if not self._plain:
            self.grad_norm = self.engine.get_global_grad_norm()
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _pools(self, micro_batches: list[Batch]) -> list[Pool]:
        """What each micro-batch needs to know of the global batch: hidden counts, and everybody's features."""
        counts = [torch.stack([(b.target_BL != IGNORE).sum(), b.patch_mask_BN.sum()]) for b in micro_batches]
        hidden_tokens, hidden_patches = dist.all_reduce(torch.stack(counts).sum(0)).unbind()
        encoded = self._gather
        if self.config.objectives.itc and len(micro_batches) > 1:
            with torch.no_grad():
                gathered = [self._gather(self.model.encode_pairs(batch)) for batch in micro_batches]
            whole = Encoded(*(torch.cat([getattr(e, name) for e in gathered]) for name in Encoded.__annotations__))

            def encoded(own: Encoded) -> Encoded:
                return whole

        parts = len(micro_batches) * dist.world()
        starts = [(m * dist.world() + dist.rank()) * len(batch) for m, batch in enumerate(micro_batches)]
        return [Pool(encoded, start, parts, hidden_tokens, hidden_patches) for start in starts]

    @staticmethod
    def _gather(own: Encoded) -> Encoded:
        return Encoded(*(dist.all_gather(getattr(own, name)) for name in Encoded.__annotations__))

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Every parameter by name, in one order on every rank."""
        return ((self._names[id(parameter)], parameter) for parameter in self.model.parameters())

    def whole_tensors(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Name and whole fp32 master weight and moments of every parameter, on every rank; all ranks must call."""
        self._link_state()
        return ((name, self._read(parameter)) for name, parameter in self.parameters())

    def _read(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        if self._plain:
            state = self.engine.optimizer.state[parameter]
            return {"weight": parameter.data, **{key: state[key] for key in MOMENTS if key in state}}
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        whole = {"weight": safe_get_full_fp32_param(parameter)}
        if self.updates:
            whole |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        shape = getattr(parameter, "ds_shape", parameter.shape)
        return {key: tensor.reshape(shape) for key, tensor in whole.items()}

    def write(self, parameter: torch.nn.Parameter, whole: dict[str, Tensor]) -> None:
        """Set what `whole_tensors` gives, in the low-precision copy too; all ranks must call, with equal tensors."""
        if self._plain:
            parameter.data.copy_(whole["weight"])
            for key in MOMENTS:
                if key in whole:
                    self.engine.optimizer.state[parameter][key].copy_(whole[key])
            return
        whole = {key: tensor.to(self.device) for key, tensor in whole.items()}
        if self.stage == 3:
            self._write_partition(parameter, whole)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.data.copy_(whole["weight"])
        safe_set_full_fp32_param(parameter, whole["weight"])
        for key in MOMENTS:
            if key in whole:
                safe_set_full_optimizer_state(parameter, whole[key], key)

    @staticmethod
    def _write_partition(parameter: Any, whole: dict[str, Tensor]) -> None:
        """ZeRO-3: set this rank's part. DeepSpeed's own setter fails where a parameter does not divide by the ranks."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size, rank = parameter.ds_tensor.numel(), parameter._z3_optimizer._get_param_partition_rank(parameter)

        def part(tensor: Tensor) -> Tensor:
            flat = tensor.flatten()[rank * size : (rank + 1) * size]
            return torch.nn.functional.pad(flat, (0, size - len(flat)))

        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(whole["weight"])
        safe_set_local_fp32_param(parameter, part(whole["weight"]))
        for key in MOMENTS:
            if key in whole:
                safe_set_local_optimizer_state(parameter, part(whole[key]), key)

    @property
    def updates(self) -> int:
        """Updates the optimiser has made, 0 for one without state."""
        steps = [state["step"] for state in self._base.state.values() if "step" in state]
        return int(steps[0]) if steps else 0

    def prepare_state(self, updates: int) -> None:
        """Give the optimiser zero moments and the count of updates it is to go on from, so that `write` can fill them.

        torch and DeepSpeed make this state at the first update only.
        """
        for owner in self._state_owners():
            state = self._base.state[owner]
            state.update({key: torch.zeros_like(owner, memory_format=torch.preserve_format) for key in MOMENTS})
            is_torch = isinstance(self._base, torch.optim.AdamW)
            count = torch.tensor(float(updates), device=owner.device if self._base.defaults.get("fused") else "cpu")
            state["step"] = count if is_torch else updates
        self._link_state()

    def _link_state(self) -> None:
        """Have ZeRO 1 and 2 find the state of every parameter again.

        DeepSpeed makes these links when the first parameter group has been updated, before the others have state.
        """
        link = getattr(self.engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None and self.updates:
            self.engine.optimizer._hp_optimizer_states_linked = False
            link()

    @property
    def _base(self) -> torch.optim.Optimizer:
        return self.engine.optimizer if self._plain else self.engine.optimizer.optimizer

    def _state_owners(self) -> list[Tensor]:
        """The tensors that the wrapped optimiser keeps state for: parameters, or this rank's flat partitions."""
        if self._plain:
            return list(self.model.parameters())
        if self.stage == 3:
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._base.param_groups for parameter in group["params"]]


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Device randomness from (seed, step, rank), so that none of it has to be saved."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)


def _import_deepspeed() -> Any:
    """DeepSpeed, told to compile nothing for a CPU: gloo and torch's AdamW serve there."""
    if not dist.uses_cuda():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    # torch 2.13 has new names for collectives that DeepSpeed calls by the old ones
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    if not dist.uses_cuda():
        compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
        if isinstance(compatible, dict):
            compatible["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if dist.uses_cuda() else "gloo", auto_mpi_discovery=False, verbose=False
    )
    return deepspeed
