"""Layer norm in Triton, of rows or of sums of two rows: forward reads and writes each number once.

A program holds a row in registers. In backward each of a fixed number of programs, n, takes every n-th row, and adds up
these rows' part of the gradients of weight and bias; torch adds up the parts, always in the same order.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvlm.kernels.triton_operators import triton_op, wrap_triton

PROGRAMS = 1024
"""Programs that share the rows in backward: as many as an H100's registers hold at once, and the same on every GPU, so
that sums are the same too."""


@triton.jit
def normalize_rows(x, branch, weight, bias, sums, results, means, scales, width, eps, BLOCK: tl.constexpr):
    """One row: its sum with the branch, if there is one, its layer norm, and mean and 1 / deviation for backward."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
    if branch is not None:
        value += tl.load(branch + at, mask=inside, other=0).to(tl.float32)
        rounded = value.to(sums.dtype.element_ty)
        tl.store(sums + at, rounded, mask=inside)
        value = rounded.to(tl.float32)  # as backward will see it
    mean = tl.sum(value, 0) / width
    centred = tl.where(inside, value - mean, 0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)
    factor = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0).to(tl.float32)
    tl.store(results + at, (centred * scale * factor + shift).to(results.dtype.element_ty), mask=inside)


@triton.jit
def differentiate_rows(
    grad, grad_sums, x, weight, means, scales, grad_x, parts, rows, width, programs, BLOCK: tl.constexpr
):
    """The gradient at every `programs`-th row, and these rows' part of the gradients of weight and bias."""
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    factor = tl.load(weight + column, mask=inside, other=0).to(tl.float32)
    weight_part = tl.zeros([BLOCK], tl.float32)
    bias_part = tl.zeros([BLOCK], tl.float32)
    for first in range(0, rows, programs):
        row = (program + first).to(tl.int64)
        there = column < tl.where(row < rows, width, 0)
        own = tl.minimum(row, rows - 1)
        at = row * width + column
        upstream = tl.load(grad + at, mask=there, other=0).to(tl.float32)
        value = tl.load(x + at, mask=there, other=0).to(tl.float32)
        mean, scale = tl.load(means + own), tl.load(scales + own)
        normed = tl.where(there, (value - mean) * scale, 0)
        weight_part += upstream * normed
        bias_part += upstream
        upstream *= factor
        along = tl.sum(upstream * normed, 0) / width
        gradient = (upstream - tl.sum(upstream, 0) / width - normed * along) * scale
        if grad_sums is not None:
            gradient += tl.load(grad_sums + at, mask=there, other=0).to(tl.float32)
        tl.store(grad_x + at, gradient.to(grad_x.dtype.element_ty), mask=there)
    part = parts + program.to(tl.int64) * 2 * width + column
    tl.store(part, weight_part, mask=inside)
    tl.store(part + width, bias_part, mask=inside)


def block_and_warps(width: int) -> tuple[int, int]:
    """Eight numbers per thread, which is one load of 16 bytes in bf16."""
    block = triton.next_power_of_2(width)
    return block, min(max(block // 256, 1), 16)


@triton_op("mvlm::norm_rows", mutates_args={})
def norm_rows(
    x_RD: Tensor, branch_RD: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The layer norm of contiguous rows; their sum with the branch, empty without one; mean and 1 / deviation, fp32."""
    count, width = x_RD.shape
    sum_RD = torch.empty_like(x_RD) if branch_RD is not None else x_RD.new_empty(0)
    normed_RD = torch.empty_like(x_RD)
    mean_R, scale_R = (x_RD.new_empty(count, dtype=torch.float32) for _ in range(2))
    block, warps = block_and_warps(width)
    if count:
        wrap_triton(normalize_rows)[(count,)](
            x_RD,
            branch_RD,
            weight_D,
            bias_D,
            sum_RD,
            normed_RD,
            mean_R,
            scale_R,
            width,
            eps,
            BLOCK=block,
            num_warps=warps,
        )
    return normed_RD, sum_RD, mean_R, scale_R


@triton_op("mvlm::norm_rows_backward", mutates_args={})
def norm_rows_backward(
    grad_RD: Tensor, grad_sum_RD: Tensor | None, x_RD: Tensor, weight_D: Tensor, mean_R: Tensor, scale_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of contiguous rows, of weight and of bias."""
    count, width = x_RD.shape
    programs = min(count, PROGRAMS)
    grad_x_RD = torch.empty_like(x_RD)
    part_P2D = x_RD.new_empty(programs, 2, width, dtype=torch.float32)
    block, warps = block_and_warps(width)
    if count:
        wrap_triton(differentiate_rows)[(programs,)](
            grad_RD,
            grad_sum_RD,
            x_RD,
            weight_D,
            mean_R,
            scale_R,
            grad_x_RD,
            part_P2D,
            count,
            width,
            programs,
            BLOCK=block,
            num_warps=warps,
        )
    grad_weight_D, grad_bias_D = part_P2D.sum(0).to(weight_D.dtype).unbind()
    return grad_x_RD, grad_weight_D.clone(), grad_bias_D.clone()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_RD, branch_RD, weight_D, *_ = inputs
    _, sum_RD, mean_R, scale_R = output
    ctx.branches = branch_RD is not None
    ctx.save_for_backward(sum_RD if ctx.branches else x_RD, weight_D, mean_R, scale_R)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_RD: Tensor | None, grad_sum_RD: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    grad_sum_RD = grad_sum_RD.contiguous() if ctx.branches and grad_sum_RD is not None else None
    if grad_RD is None:  # nobody read the norm
        return grad_sum_RD, grad_sum_RD if ctx.branches else None, None, None, None
    grad_x_RD, grad_weight_D, grad_bias_D = norm_rows_backward(grad_RD.contiguous(), grad_sum_RD, *ctx.saved_tensors)
    return grad_x_RD, grad_x_RD if ctx.branches else None, grad_weight_D, grad_bias_D, None


norm_rows.register_autograd(_backward, setup_context=_save)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `mvlm.kernels.layer_norm.by_torch`, for rows that one program can hold (`LARGEST` there)."""
    return norm_rows(_rows(x), None, weight, bias, eps)[0].view(x.shape)


def residual_norm(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `mvlm.kernels.layer_norm.residual_norm_by_torch`."""
    normed, total, _, _ = norm_rows(_rows(x), _rows(branch), weight, bias, eps)
    return total.view(x.shape), normed.view(x.shape)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()
