"""Layer norm, alone or after a residual addition, and the layers of a model computed by it."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op, by_name_only

LARGEST = 4096
"""The most values of a row that a program of the Triton kernels holds at once."""


def by_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.layer_norm(x, weight.shape, weight, bias, eps)


def by_apex(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """apex's kernel, statistics in fp32 (apex/normalization/fused_layer_norm.py)."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(x, weight, bias, tuple(weight.shape), eps)


def by_triton(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    from mvlm.kernels.layer_norm_triton import layer_norm

    return layer_norm(x, weight, bias, eps)


def _apex_takes(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if x.device.type != "cuda":
        return "it runs on CUDA"
    if x.dtype != weight.dtype or x.numel() == 0:
        return "it takes rows of the weight's own precision"
    return None


def _triton_takes(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if weight.numel() > LARGEST:
        return f"a row has {weight.numel()} values, more than {LARGEST}"
    if x.dtype != weight.dtype:
        return "it takes rows of the weight's own precision"
    return probes.not_for_triton(x, weight) or probes.autocast(x)


layer_norm = Op(
    "layer_norm",
    Implementation(
        "apex", by_apex, lambda: probes.apex("fused_layer_norm_cuda"), _apex_takes, by_name_only, library="apex"
    ),
    Implementation("triton", by_triton, probes.triton, _triton_takes, by_name_only, library="triton"),
    Implementation("torch", by_torch),
)
"""layer_norm(x, weight_D, bias_D, eps): over the last dimension (Ba et al. 2016)."""


def residual_norm_by_torch(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """An addition, and then whatever computes layer norms."""
    total = x + branch
    return total, layer_norm(total, weight, bias, eps)


def residual_norm_by_triton(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    from mvlm.kernels.layer_norm_triton import residual_norm

    return residual_norm(x, branch, weight, bias, eps)


def _residual_triton_takes(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if branch.shape != x.shape or branch.dtype != x.dtype:
        return "the branch has another shape or precision"
    return _triton_takes(x, weight, bias, eps)


residual_norm = Op(
    "residual_norm",
    Implementation(
        "triton",
        residual_norm_by_triton,
        probes.triton,
        _residual_triton_takes,
        by_name_only,
        library="triton",
    ),
    Implementation("torch", residual_norm_by_torch),
)
"""residual_norm(x, branch, weight_D, bias_D, eps) -> (x + branch, the layer norm of that)."""


class LayerNorm(nn.LayerNorm):
    """torch's layer, computed by `layer_norm`; given a branch as well, by `residual_norm`, which gives the sum too."""

    def forward(self, input: Tensor, branch: Tensor | None = None) -> Any:
        if branch is None:
            return layer_norm(input, self.weight, self.bias, self.eps)
        return residual_norm(input, branch, self.weight, self.bias, self.eps)


class ResidualBlock(Block):
    """timm's block, with the first branch's addition and the second norm as one operation."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        attended = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x, normed = self.norm2(x, self.drop_path1(self.ls1(attended)))
        return x + self.drop_path2(self.ls2(self.mlp(normed)))


class ResidualOutput(nn.Module):
    """The end of a branch in transformers' BERT-like layers: their `SelfOutput` and `Output`, which are the same."""

    dense: nn.Linear
    dropout: nn.Dropout
    LayerNorm: LayerNorm

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)), input_tensor)[1]
