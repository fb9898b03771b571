"""Linear layers whose three products are in fp8, each tensor scaled to fill its range (Micikevicius et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.kernels import probes

SIDE = 16
"""The sides of a weight must be multiples of this for fp8 products."""
FIRST_GPU = 8, 9
"""The compute capability of the first GPUs that multiply in fp8."""


def by_torchao(x: Tensor, weight_OI: Tensor, bias: Tensor | None) -> Tensor:
    """torchao's products, e4m3 and for gradients e5m2; emulated on a CPU. Layers with other sides are torch's."""
    if any(side % SIDE for side in weight_OI.shape) or not x.numel():
        return F.linear(x, weight_OI, bias)
    product, *settings = _TORCHAO[x.device.type == "cpu"]
    made = product(x, weight_OI.t(), *settings)
    return made if bias is None else made + bias


def _settle() -> None:
    """Get torchao's product, and the settings that it takes, for GPUs and emulated."""
    from torchao.float8.config import Float8LinearConfig
    from torchao.float8.float8_linear import Float8Linear, matmul_with_hp_or_float8_args

    for imitated in (False, True):
        config = Float8LinearConfig(emulate=imitated, pad_inner_dim=not imitated)
        with torch.device("meta"):
            layer = Float8Linear(SIDE, SIDE, config=config)
        _TORCHAO[imitated] = matmul_with_hp_or_float8_args.apply, layer.linear_mm_config, config


_TORCHAO: dict[bool, tuple[Any, Any, Any]] = {}
"""Filled by the probe: torch's compiler could not trace this."""


def why_not_torchao() -> str | None:
    if reason := probes.package("torchao.float8"):
        return reason
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < FIRST_GPU:
        return "this GPU has no products in fp8"
    _settle()
    return None
