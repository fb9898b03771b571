"""GELU and the linear layer after it: what is kept for backward, and what is computed in one pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op, by_name_only
from mvlm.kernels.linear import gradients, linear


def gelu_linear_recomputed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Keeps only the input, from which backward recomputes GELU's result: half of what a feed-forward keeps."""
    return _GeluLinear.apply(x, weight, bias)


def gelu_linear_kept(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Keeps GELU's input and result, as torch does."""
    return linear(F.gelu(x), weight, bias)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        active = F.gelu(x) if needs_weight else x
        needs = needs_x, needs_weight, needs_bias and ctx.has_bias
        grad_active, grad_weight, grad_bias = gradients(grad, active, weight, needs)
        grad_x = None if grad_active is None else torch.ops.aten.gelu_backward(grad_active, x)
        return grad_x, grad_weight, grad_bias


def linear_before_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer, and a stand-in for its bias: the gradient that the stand-in gets becomes the bias's.

    The stand-in has the bias's shape and no meaning of its own.
    """
    return _LinearBeforeGelu.apply(x, weight, bias)


class _LinearBeforeGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias), torch.empty_like(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad_x, grad_weight, _ = gradients(grad, x, weight, (needs_x, needs_weight, False))
        return grad_x, grad_weight, grad_bias


def gelu_linear_fused(x: Tensor, weight: Tensor, bias: Tensor | None, stand_in: Tensor | None = None) -> Tensor:
    """Keeps only the input; backward recomputes GELU, with its gradient and that of the bias before, in one pass."""
    return _FusedGeluLinear.apply(x, weight, bias, stand_in)


class _FusedGeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stand_in: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.has_stand_in = bias is not None, stand_in is not None
        return linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from mvlm.kernels.gelu_triton import gelu_backward_

        x, weight = ctx.saved_tensors
        _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_active, _, _ = gradients(grad, x, weight, (True, False, False))
        assert grad_active is not None  # it was asked for
        rows_RO = grad_active.flatten(0, -2).contiguous()
        active_RO, sum_O = gelu_backward_(rows_RO, x.flatten(0, -2).contiguous(), needs_weight)
        _, grad_weight, grad_bias = gradients(
            grad, active_RO if needs_weight else x, weight, (False, needs_weight, needs_bias)
        )
        return rows_RO.view(x.shape), grad_weight, grad_bias, sum_O.to(x.dtype) if ctx.has_stand_in else None


def _recomputing_takes(x: Tensor, *_: object) -> str | None:
    return probes.autocast(x)


def _recomputing_pays(x: Tensor, *_: object) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler decides by itself what to recompute"
    if x.device.type == "cpu":
        return "on a CPU memory costs less than a second GELU"
    return None


def _fused_takes(x: Tensor, weight: Tensor, *_: object) -> str | None:
    if x.dtype != weight.dtype:
        return "it takes rows of the weight's own precision"
    return probes.not_for_triton(x, weight) or probes.autocast(x)


gelu_linear = Op(
    "gelu_linear",
    Implementation("triton", gelu_linear_fused, probes.triton, _fused_takes, by_name_only, library="triton"),
    Implementation(
        "recomputed",
        gelu_linear_recomputed,
        accepts=_recomputing_takes,
        pays=_recomputing_pays,
    ),
    Implementation("kept", gelu_linear_kept),
)
"""gelu_linear(x, weight, bias or None) = linear(gelu(x)), GELU being the exact one (Hendrycks & Gimpel 2016).

In Triton it also takes the stand-in of `linear_before_gelu` for the bias of the layer before."""


class LinearBeforeGelu(nn.Linear):
    """The first layer of a feed-forward, before a `GeluLinear`; if that is fused, it also gives its bias's stand-in."""

    def forward(self, input: Tensor) -> Any:
        if self.bias is not None and gelu_linear.first(input, self.weight, self.bias).name == "triton":
            return linear_before_gelu(input, self.weight, self.bias)
        return linear(input, self.weight, self.bias)


class GeluLinear(nn.Linear):
    """The second layer of a feed-forward, which takes the first one's result and applies GELU itself."""

    def forward(self, input: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if isinstance(input, tuple):
            x, stand_in = input
            return gelu_linear(x, self.weight, self.bias, stand_in)
        return gelu_linear(input, self.weight, self.bias)
