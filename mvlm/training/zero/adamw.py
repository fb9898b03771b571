"""Fused AdamW by whichever library has it: one pass over weights, gradients and moments. All give the same updates."""

from __future__ import annotations

from typing import Any

import torch

from mvlm.config.schema import Optim
from mvlm.errors import UserError, first_line
from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op, by_name_only

Settings = dict[str, Any]
"""lr, betas, eps and weight_decay, always all of them: the libraries' defaults differ."""


def build_adamw(groups: list[dict[str, Any]], optim: Optim, device: torch.device, stage: int) -> torch.optim.Optimizer:
    """AdamW for parameters on `device` that ZeRO at `stage` partitions; `kernels.optimizer` has chosen whose.

    Raises:
        UserError: the one asked for does not work at this stage.
    """
    settings = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
    return optimizer(groups, settings, device, stage)


def by_apex(groups: list[dict[str, Any]], settings: Settings, device: torch.device, stage: int) -> Any:
    from apex.optimizers import FusedAdam

    return FusedAdam(groups, adam_w_mode=True, **settings)


def by_deepspeed(groups: list[dict[str, Any]], settings: Settings, device: torch.device, stage: int) -> Any:
    from deepspeed.ops.adam import FusedAdam

    try:
        return FusedAdam(groups, adam_w_mode=True, **settings)
    except Exception as error:  # compilers fail in many ways
        reason = first_line(error)
        raise UserError(
            f"kernels.optimizer = 'deepspeed' cannot be compiled here ({reason}): install a compiler, or choose auto."
        ) from None


def by_torch(groups: list[dict[str, Any]], settings: Settings, device: torch.device, stage: int) -> Any:
    return torch.optim.AdamW(groups, fused=True, **settings)


def _apex_takes(groups: object, settings: object, device: torch.device, stage: int) -> str | None:
    if device.type != "cuda":
        return "it runs on CUDA"
    # Stage 3 updates a group in pieces, each of which apex would count as an update of the whole.
    return "it counts updates wrongly at ZeRO stage 3" if stage == 3 else None


optimizer = Op(
    "optimizer",
    Implementation("apex", by_apex, lambda: probes.apex("amp_C"), _apex_takes, by_name_only, library="apex"),
    Implementation("deepspeed", by_deepspeed, probes.deepspeed, pays=by_name_only, library="deepspeed"),
    Implementation("torch", by_torch),
)
"""optimizer(groups, settings, device, stage) -> AdamW (Loshchilov & Hutter 2019), decay decoupled."""
