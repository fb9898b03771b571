"""Gradients of queries, keys and values from one product, which come back in one tensor and are not copied.

Otherwise each has a tensor of its own, and the product's gradient is put together from them: for a ViT-B/16's qkv layer
another six passes over them. Of torch's kernels only memory-efficient attention's can write them side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class UnmaskedAttention(torch.autograd.Function):
    """Without mask and dropout; as many queries as keys (BHLd), from one product or not."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        given = [x.transpose(1, 2) for x in (query, key, value)]
        forward = torch.ops.aten._efficient_attention_forward
        attended, log_sum_exp, seed, offset, *_ = forward(*given, None, None, None, None, None, 0.0, 0, True)
        ctx.save_for_backward(*given, attended, log_sum_exp, seed, offset)
        return attended.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, attended, log_sum_exp, seed, offset = ctx.saved_tensors
        length = query.shape[1]
        backward = torch.ops.aten._efficient_attention_backward
        *found, _ = backward(
            grad.transpose(1, 2),
            query,
            key,
            value,
            None,
            attended,
            None,
            None,
            length,
            length,
            log_sum_exp,
            0.0,
            seed,
            offset,
            0,
            False,
            shared_storage_dqdkdv=True,
        )
        return tuple(x.transpose(1, 2) for x in found)


class Parts(torch.autograd.Function):
    """Equal parts of the last dimension; gradients that lie side by side already are passed back without a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> tuple[Tensor, ...]:
        return x.chunk(count, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        first, width = grads[0], grads[0].shape[-1]
        if not all(_is_behind(first, grad, place * width) for place, grad in enumerate(grads)):
            return torch.cat(grads, dim=-1), None
        return first.as_strided((*first.shape[:-1], len(grads) * width), first.stride()), None


def _is_behind(first: Tensor, other: Tensor, numbers: int) -> bool:
    """Whether `other` lies in the rows of `first`, so many numbers further on."""
    return (
        torch._C._is_alias_of(first, other)  # type: ignore[attr-defined]
        and first.stride() == other.stride()
        and first.stride()[-1] == 1
        and first.stride()[-2] >= numbers + other.shape[-1]
        and other.storage_offset() - first.storage_offset() == numbers
    )
