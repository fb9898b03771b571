"""Linear layers, and the GELU before one, with what each CPU and GPU does best.

torch's own way on a CPU copies the bias into the result before it multiplies; oneDNN's fused product does not. Its
weight gradient multiplies transposed views, which a wide input makes slow in 16 bits. MKL does without AVX-512 on AMD.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One product that adds the bias as it goes, on a CPU."""
    return _OneDnn.apply(x, weight, bias)


def by_apex(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Bias in the forward product, its gradient in the weight's product (apex/fused_dense/fused_dense.py)."""
    from apex.fused_dense.fused_dense import FusedDenseFunc

    return FusedDenseFunc.apply(x.flatten(0, -2).contiguous(), weight, bias).unflatten(0, x.shape[:-1])


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return gradients(grad, x, weight, (needs_x, needs_weight, needs_bias and ctx.has_bias))


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a linear layer's input, weight and bias, where they are needed."""
    rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
    return (
        _input_gradient(grad, weight) if needs[0] else None,
        _weight_gradient(rows, inputs) if needs[1] else None,
        rows.sum(0) if needs[2] else None,
    )


def _input_gradient(grad: Tensor, weight_OI: Tensor) -> Tensor:
    if _mkl_is_slow(grad) and grad.numel():
        return _onednn_product(grad, weight_OI.t().contiguous(), None)
    return grad @ weight_OI


def _mkl_is_slow(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and probes.mkl_lacks_avx512()


def _weight_gradient(grad_RO: Tensor, x_RI: Tensor) -> Tensor:
    """R rows -> OI. A CPU's product in 16 bits is the faster one with a narrow gradient transposed in memory first."""
    if _mkl_is_slow(x_RI) and x_RI.numel():
        return _onednn_product(grad_RO.t().contiguous(), x_RI.t().contiguous(), None)
    narrow = grad_RO.device.type == "cpu" and grad_RO.dtype == torch.bfloat16 and 2 * grad_RO.shape[1] <= x_RI.shape[1]
    return (grad_RO.t().contiguous() if narrow else grad_RO.t()) @ x_RI


def _has_onednn() -> str | None:
    return None if torch.backends.mkldnn.is_available() else "this torch is built without oneDNN"


def _onednn_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    if x.device.type != "cpu":
        return "it runs on CPUs"
    if x.dtype not in (torch.float32, torch.bfloat16) or x.dtype != weight.dtype:
        return "it computes in fp32 or bf16"
    if x.numel() == 0:
        return "there are no rows"
    return _autocast(x)


def _onednn_pays(x: Tensor, *_: object) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler finds the fused product by itself"
    if x.dtype == torch.float32 and not probes.mkl_lacks_avx512():
        return "MKL is as fast in fp32 on this CPU"
    if x.dtype == torch.bfloat16 and not probes.cpu_has_bf16_products():
        return "this CPU has no products in bf16"
    return None


def _apex_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    if x.device.type != "cuda":
        return "it runs on CUDA"
    if bias is None:
        return "there is no bias"
    if x.dtype != weight.dtype or x.numel() == 0:
        return "it takes rows of the weight's own precision"
    return _autocast(x)


def _autocast(x: Tensor) -> str | None:
    return "autocast is on" if torch.is_autocast_enabled(x.device.type) else None


def _not_measured(*_: object) -> str | None:
    return "not measured yet: taken by name alone"


linear = Op(
    "linear",
    Implementation(
        "apex", by_apex, lambda: probes.apex("fused_dense_cuda"), _apex_takes, _not_measured, probes.apex_version
    ),
    Implementation("onednn", by_onednn, _has_onednn, _onednn_takes, _onednn_pays, probes.torch_version),
    Implementation("torch", by_torch, version=probes.torch_version),
)
"""linear(x, weight, bias or None): x of any number of dimensions, its last the weight's second."""


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def gelu_linear_recomputed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Keeps the input alone, from which backward computes GELU's result again: half of what a feed-forward keeps."""
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


def _recomputing_takes(x: Tensor, *_: object) -> str | None:
    return _autocast(x)


def _recomputing_pays(x: Tensor, *_: object) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler decides itself what to compute again"
    if x.device.type == "cpu":
        return "on a CPU memory costs less than a second GELU"
    return None


gelu_linear = Op(
    "gelu_linear",
    Implementation(
        "recomputed",
        gelu_linear_recomputed,
        accepts=_recomputing_takes,
        pays=_recomputing_pays,
        version=probes.torch_version,
    ),
    Implementation("kept", gelu_linear_kept, version=probes.torch_version),
)
"""gelu_linear(x, weight, bias or None) = linear(gelu(x)), GELU being the exact one (Hendrycks & Gimpel 2016)."""


class GeluLinear(nn.Linear):
    """The second layer of a feed-forward, which takes what the first gives and applies GELU itself."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu_linear(input, self.weight, self.bias)
