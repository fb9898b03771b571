"""Layer norm, and the layers of a model computed by it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op, by_name_only


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def by_apex(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """apex's kernel, statistics in fp32 (apex/normalization/fused_layer_norm.py)."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(x, weight, bias, tuple(weight.shape), eps)


def _apex_takes(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if x.device.type != "cuda":
        return "it runs on CUDA"
    if x.dtype != weight.dtype or x.numel() == 0:
        return "it takes rows of the weight's own precision"
    return None


layer_norm = Op(
    "layer_norm",
    Implementation(
        "apex", by_apex, lambda: probes.apex("fused_layer_norm_cuda"), _apex_takes, by_name_only, probes.apex_version
    ),
    Implementation("torch", by_torch, version=probes.torch_version),
)
"""layer_norm(x, weight_D, bias_D, eps): over the last dimension (Ba et al. 2016)."""


class LayerNorm(nn.LayerNorm):
    """torch's layer, computed by `layer_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.weight, self.bias, self.eps)
