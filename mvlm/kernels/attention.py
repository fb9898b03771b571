"""Attention of queries to keys and values, and timm's attention layers made to use it.

On a GPU `scaled_dot_product_attention` is the fused kernel to use. On a CPU its backward does not use the instructions
for bf16: two matrix products with a softmax between them take half its time and, in fp32 with few keys, three quarters
(docs/kernels.md). A CPU without such instructions is faster in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as TimmAttention
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from mvlm.kernels import probes
from mvlm.kernels.dispatch import FOR_CPUS, FOR_FP32, Implementation, Op, by_name_only
from mvlm.kernels.one_buffer import Parts, UnmaskedAttention


def by_products(
    query_BHLd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Matrix product, softmax, matrix product."""
    batch, heads, length, depth = query_BHLd.shape
    query, key, value = (x.flatten(0, 1) for x in (query_BHLd, key_BHTd, value_BHTd))
    shape = batch * heads, length, key.shape[1]
    nothing = query.new_zeros(()).expand(shape)
    # The product scales as it goes: scaling before or after it is one more pass over memory, and one more backward.
    scores = torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=depth**-0.5)
    if mask is not None:
        # Not infinity, which turns a row that may see nothing into NaN.
        scores = scores.unflatten(0, (batch, heads)).masked_fill(~mask, torch.finfo(scores.dtype).min).view(shape)
    weights = F.dropout(scores.softmax(-1), dropout)
    return torch.bmm(weights, value).view(query_BHLd.shape)


def by_sdpa(
    query_BHLd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """torch's `scaled_dot_product_attention`."""
    return F.scaled_dot_product_attention(query_BHLd, key_BHTd, value_BHTd, attn_mask=mask, dropout_p=dropout)


CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def by_cudnn(
    query_BHLd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """cuDNN's attention for what it takes, torch's own for the rest."""
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        return by_sdpa(query_BHLd, key_BHTd, value_BHTd, mask, dropout)


def _why_not_cudnn() -> str | None:
    if reason := probes.cuda():
        return reason
    return None if torch.backends.cudnn.is_available() else "this torch is built without cuDNN"


FLASH_FIRST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FA3 = "FA3"
FA3_GPU = 9
"""The major compute capability of the GPUs that it is written for."""


def by_fa3(
    query_BHLd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """torch's flash attention, which is FlashAttention 3 while this is chosen; other kernels for what that refuses."""
    with sdpa_kernel(FLASH_FIRST, set_priority=True):
        return by_sdpa(query_BHLd, key_BHTd, value_BHTd, mask, dropout)


def _why_not_fa3() -> str | None:
    offered = getattr(torch.nn.attention, "list_flash_attention_impls", list)
    if FA3 not in offered():
        return "this torch does not offer it"
    if reason := probes.cuda():
        return reason
    if torch.cuda.get_device_capability()[0] != FA3_GPU:
        return "it is for GPUs of compute capability 9"
    return probes.package("flash_attn_interface")


def _switch_fa3(on: bool) -> None:
    """Switch it in the whole process, for backward too, and for packed texts."""
    if on:
        torch.nn.attention.activate_flash_attention_impl(FA3)
    else:
        torch.nn.attention.restore_flash_attention_impl()


def by_efficient(
    query_BHLd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Memory-efficient self-attention, with gradients in one tensor; torch's own for everything else."""
    if mask is not None or dropout or query_BHLd.shape != key_BHTd.shape or not query_BHLd.numel():
        return by_sdpa(query_BHLd, key_BHTd, value_BHTd, mask, dropout)
    return UnmaskedAttention.apply(query_BHLd, key_BHTd, value_BHTd)


def _efficient_takes(query_BHLd: Tensor, *_: object, **__: object) -> str | None:
    # "meta" stands for CUDA when work is counted.
    return None if query_BHLd.device.type in ("cuda", "meta") else "it runs on CUDA"


def by_fp32(
    query_BHLd: Tensor, key_BHTd: Tensor, value_BHTd: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """bf16 computed by the fused kernel in fp32, and rounded once."""
    if dropout or not query_BHLd.numel():
        return by_sdpa(query_BHLd.float(), key_BHTd.float(), value_BHTd.float(), mask, dropout).to(query_BHLd.dtype)
    return _FusedInFp32.apply(query_BHLd, key_BHTd, value_BHTd, mask)


class _FusedInFp32(torch.autograd.Function):
    """The kernel behind `by_sdpa`; what it keeps for backward stays in bf16."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        attended, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.float(), key.float(), value.float(), attn_mask=_added(mask)
        )
        attended = attended.to(query.dtype)
        ctx.save_for_backward(query, key, value, attended, log_sum_exp, mask)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *kept, log_sum_exp, mask = ctx.saved_tensors
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad.float(), *(x.float() for x in kept), log_sum_exp, 0.0, False, attn_mask=_added(mask)
        )
        return *(x.to(grad.dtype) for x in found), None


def _added(mask: Tensor | None) -> Tensor | None:
    """The mask as numbers that are added to the scores."""
    if mask is None:
        return None
    # Not infinity, which turns a row that may see nothing into NaN.
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def _fp32_takes(query_BHLd: Tensor, *_: object, **__: object) -> str | None:
    if query_BHLd.device.type != "cpu":
        return FOR_CPUS
    return None if query_BHLd.dtype in (torch.bfloat16, torch.float32) else FOR_FP32


def _fp32_pays(query_BHLd: Tensor, *_: object, **__: object) -> str | None:
    return None if probes.imitates(query_BHLd) else "there is nothing to be gained from another precision"


FEW_KEYS, MANY_QUERIES = 32, 256
"""Up to so many keys (a text's) and queries (an image's), two products are faster than the fused kernel in fp32."""


def _products_pay(query_BHLd: Tensor, key_BHTd: Tensor, *_: object, **__: object) -> str | None:
    if query_BHLd.device.type != "cpu":
        return "the fused kernel is faster on a GPU"
    if query_BHLd.dtype in (torch.bfloat16, torch.float16):
        return None
    if query_BHLd.dtype != torch.float32 or not probes.HAS_MKL or probes.mkl_lacks_avx512():
        return "the fused kernel is faster in this precision"
    if key_BHTd.shape[2] > FEW_KEYS or not 1 < query_BHLd.shape[2] <= MANY_QUERIES:
        return "the fused kernel is faster with so many keys or queries, or one query"
    return None


attention = Op(
    "attention",
    Implementation("cudnn", by_cudnn, _why_not_cudnn, pays=by_name_only),
    Implementation(
        "fa3",
        by_fa3,
        _why_not_fa3,
        pays=by_name_only,
        library="flash_attn_3",
        switch=_switch_fa3,
    ),
    Implementation("efficient", by_efficient, probes.cuda, _efficient_takes, by_name_only),
    Implementation("fp32", by_fp32, accepts=_fp32_takes, pays=_fp32_pays),
    Implementation("products", by_products, pays=_products_pay),
    Implementation("sdpa", by_sdpa),
)
"""attention(query_BHLd, key_BHTd, value_BHTd, mask=None, dropout=0.0) -> BHLd.

`mask` is bool and broadcasts to B x H x L x T, True = may be seen. The result for a query that may see nothing is
finite, as are all gradients, and otherwise unspecified. `dropout` is the share of attention weights set to 0.
"""


def parts(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """One product's result for attention, taken apart along its last dimension.

    The gradients of parts are put together in one pass, those of an unbound dimension in two, and in none if
    "efficient" attention has written them side by side.
    """
    if attention.choice != "efficient" or torch.compiler.is_compiling():
        return x.chunk(count, dim=-1)
    return Parts.apply(x, count)


class DispatchedAttention(TimmAttention):
    """timm's attention layer, computed by `attention`; its parameters and their names stay."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """BSD -> BSD."""
        if is_causal or (attn_mask is not None and attn_mask.dtype != torch.bool):
            return super().forward(x, attn_mask, is_causal)
        batch, length, _ = x.shape
        gate = None if self.gate is None else self.gate(x).sigmoid()
        query, key, value = (
            part.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for part in parts(self.qkv(x), 3)
        )
        dropout = self.attn_drop.p if self.training else 0.0
        attended = attention(self.q_norm(query), self.k_norm(key), value, attn_mask, dropout)
        attended = self.norm(attended.transpose(1, 2).reshape(batch, length, self.attn_dim))
        return self.proj_drop(self.proj(attended if gate is None else attended * gate))


def use_attention(model: nn.Module) -> None:
    """Have every plain attention layer of timm's inside `model` computed by `attention`."""
    for module in model.modules():
        if type(module) is TimmAttention:
            module.__class__ = DispatchedAttention
