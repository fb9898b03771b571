"""Linear layers, with what each CPU and GPU does best.

In fp32 on a CPU, torch copies the bias into the result before it multiplies; oneDNN's fused product does not. For a
wide layer, torch's weight gradient takes the slower of two equal products, and its bias gradient takes twice the time
of one. MKL does without AVX-512 on AMD, which costs it time from Zen 5 on. A CPU without instructions for bf16
multiplies the same numbers in fp32 four times as fast as its libraries emulate bf16 (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mvlm.kernels import probes
from mvlm.kernels.dispatch import FOR_CPUS, FOR_FP32, Implementation, Op, by_name_only
from mvlm.kernels.fp8 import by_torchao, why_not_torchao


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One product that adds the bias as it goes, on a CPU."""
    return _Linear.apply(x, weight, bias, _onednn_product)


def by_mkl(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch's product, and gradients by the products at which a CPU is fastest."""
    return _Linear.apply(x, weight, bias, F.linear)


def by_fp32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Products of bf16 numbers in fp32, rounded once; what is kept for backward stays in bf16."""
    return _Linear.apply(x, weight, bias, _fp32_product)


def by_apex(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Bias in the forward product, its gradient in the weight's product (apex/fused_dense/fused_dense.py)."""
    from apex.fused_dense.fused_dense import FusedDenseFunc

    return FusedDenseFunc.apply(x.flatten(0, -2).contiguous(), weight, bias).unflatten(0, x.shape[:-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        product: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.in_fp32 = bias is not None, product is _fp32_product
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        needs = needs_x, needs_weight, needs_bias and ctx.has_bias
        if not ctx.in_fp32:
            return *gradients(grad, x, weight, needs), None
        found = gradients(grad.float(), x.float(), weight.float(), needs)
        return *(None if gradient is None else gradient.to(grad.dtype) for gradient in found), None


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _fp32_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a linear layer's input, weight and bias, None for those that are not needed."""
    rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
    return (
        _input_gradient(grad, weight) if needs[0] else None,
        _weight_gradient(rows, inputs) if needs[1] else None,
        _bias_gradient(rows) if needs[2] else None,
    )


def _input_gradient(grad: Tensor, weight_OI: Tensor) -> Tensor:
    if _mkl_is_slow(grad) and grad.numel():
        return _onednn_product(grad, weight_OI.t().contiguous(), None)
    return grad @ weight_OI


def _mkl_is_slow(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and probes.mkl_lacks_avx512()


WORTH_TWO_COPIES = 384
"""The narrower side of a layer from which oneDNN pays: it wants both of the weight gradient's factors transposed in
memory, which takes longer than the product of narrow layers. It was measured from 384 on."""


def _weight_gradient(grad_RO: Tensor, x_RI: Tensor) -> Tensor:
    """R rows -> OI. A CPU is faster with the narrow side first."""
    narrow = min(grad_RO.shape[1], x_RI.shape[1])
    if _mkl_is_slow(x_RI) and not probes.avx512_is_half() and narrow >= WORTH_TWO_COPIES and x_RI.numel():
        return _onednn_product(grad_RO.t().contiguous(), x_RI.t().contiguous(), None)
    if x_RI.device.type == "cpu" and 2 * x_RI.shape[1] <= grad_RO.shape[1] <= len(x_RI):
        return (x_RI.t() @ grad_RO).t().contiguous()
    return grad_RO.t() @ x_RI


def _bias_gradient(grad_RO: Tensor) -> Tensor:
    """R rows -> O. On a CPU a product with ones takes half the time of a sum over rows."""
    if grad_RO.device.type != "cpu":
        return grad_RO.sum(0)
    return (grad_RO.new_ones(1, len(grad_RO)) @ grad_RO)[0]


WORTH_A_CALL = 1 << 20
"""Numbers in the wider of a layer's input and result from which a call from Python pays."""


def _has_mkl() -> str | None:
    return None if probes.HAS_MKL else "this torch is built without MKL"


def _mkl_takes(x: Tensor, weight: Tensor, *_: object) -> str | None:
    if x.device.type != "cpu":
        return FOR_CPUS
    return FOR_FP32 if x.dtype != torch.float32 or weight.dtype != torch.float32 else probes.autocast(x)


def _has_onednn() -> str | None:
    return None if torch.backends.mkldnn.is_available() else "this torch is built without oneDNN"


def _onednn_takes(x: Tensor, weight: Tensor, *_: object) -> str | None:
    return _mkl_takes(x, weight) or (None if x.numel() else "there are no rows")


def _onednn_pays(x: Tensor, *_: object) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler finds the fused product by itself"
    return None if probes.mkl_lacks_avx512() else "MKL is as fast on this CPU"


def _mkl_pays(x: Tensor, weight: Tensor, *_: object) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler takes the backward apart by itself"
    if x.shape[:-1].numel() * max(weight.shape) < WORTH_A_CALL:
        return "what it saves is less than its call from Python"
    return None


def _fp32_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    if x.device.type != "cpu":
        return FOR_CPUS
    if x.dtype not in (torch.float32, torch.bfloat16) or x.dtype != weight.dtype:
        return FOR_FP32
    return probes.autocast(x)


def _fp32_pays(x: Tensor, *_: object) -> str | None:
    return None if probes.imitates(x) else "there is nothing to be gained from another precision"


def _apex_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    if x.device.type != "cuda":
        return "it runs on CUDA"
    if bias is None:
        return "there is no bias"
    if x.dtype != weight.dtype or x.numel() == 0:
        return "it takes rows of the weight's own precision"
    return probes.autocast(x)


def _torchao_takes(x: Tensor, weight: Tensor, *_: object) -> str | None:
    return "it takes numbers of the weight's own precision" if x.dtype != weight.dtype else probes.autocast(x)


linear = Op(
    "linear",
    Implementation("apex", by_apex, lambda: probes.apex("fused_dense_cuda"), _apex_takes, by_name_only, library="apex"),
    Implementation("torchao", by_torchao, why_not_torchao, _torchao_takes, by_name_only, library="torchao"),
    Implementation("fp32", by_fp32, accepts=_fp32_takes, pays=_fp32_pays),
    Implementation("onednn", by_onednn, _has_onednn, _onednn_takes, _onednn_pays),
    Implementation("mkl", by_mkl, _has_mkl, _mkl_takes, _mkl_pays),
    Implementation("torch", by_torch),
)
"""linear(x, weight, bias or None): x of any number of dimensions, its last the weight's second."""


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
