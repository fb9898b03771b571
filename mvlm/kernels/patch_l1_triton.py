"""`patch_l1` in Triton: one program per patch, which reads its target from the image in place."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvlm.kernels.triton_operators import triton_op, wrap_triton


@triton.jit
def compare_patch(
    pixels,
    image,
    patches,
    means,
    stds,
    upstream,
    results,
    pixel_row,
    pixel_value,
    image_stride,
    channel_stride,
    line_stride,
    column_stride,
    rows,
    columns,
    SIZE: tl.constexpr,
    NORMALIZED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The patch's part of the sum or, if there is an upstream gradient, the gradient at its BLOCK values."""
    COUNT: tl.constexpr = 3 * SIZE * SIZE
    row = tl.program_id(0).to(tl.int64)
    value = tl.arange(0, BLOCK)
    inside = value < COUNT
    channel, cell = value % 3, value // 3

    patch = tl.load(patches + row)
    line = patch // columns % rows * SIZE + cell // SIZE
    column = patch % columns * SIZE + cell % SIZE
    whole = image + patch // (rows * columns) * image_stride
    at = whole + channel * channel_stride + line * line_stride + column * column_stride
    target = tl.load(at, mask=inside, other=0).to(tl.float32) / 255
    target = (target - tl.load(means + channel)) / tl.load(stds + channel)
    if NORMALIZED:
        target -= tl.sum(tl.where(inside, target, 0), 0) / COUNT
        variance = tl.sum(tl.where(inside, target * target, 0), 0) / (COUNT - 1)
        target /= tl.sqrt(variance + 1e-6)

    predicted = tl.load(pixels + row * pixel_row + value * pixel_value, mask=inside, other=0).to(tl.float32)
    difference = predicted - target
    if upstream is None:
        tl.store(results + row, tl.sum(tl.where(inside, tl.abs(difference), 0), 0))
    else:
        factor = tl.load(upstream)
        gradient = tl.where(difference > 0, factor, tl.where(difference < 0, -factor, 0.0))
        tl.store(results + row * COUNT + value, gradient.to(results.dtype.element_ty), mask=inside)


def warps(block: int) -> int:
    """Enough to keep a patch in registers."""
    return 4 if block <= 1024 else 8


def _launch(
    upstream: Tensor | None,
    result: Tensor,
    pixels_MQ: Tensor,
    image_BCHW: Tensor,
    patch_M: Tensor,
    patch_size: int,
    mean_C: Tensor,
    std_C: Tensor,
    normalized: bool,
) -> Tensor:
    count, values = pixels_MQ.shape
    rows, columns = (side // patch_size for side in image_BCHW.shape[2:])
    block = triton.next_power_of_2(values)
    if count:
        wrap_triton(compare_patch)[(count,)](
            pixels_MQ,
            image_BCHW,
            patch_M,
            mean_C,
            std_C,
            upstream,
            result,
            *pixels_MQ.stride(),
            *image_BCHW.stride(),
            rows,
            columns,
            SIZE=patch_size,
            NORMALIZED=normalized,
            BLOCK=block,
            num_warps=warps(block),
        )
    return result


@triton_op("mvlm::patch_l1", mutates_args={})
def patch_l1(
    pixels_MQ: Tensor,
    image_BCHW: Tensor,
    patch_M: Tensor,
    patch_size: int,
    mean_C: Tensor,
    std_C: Tensor,
    normalized: bool,
) -> Tensor:
    """As `mvlm.kernels.patch_l1.patch_l1`, for patches that one program can hold (`LARGEST` there)."""
    sum_M = pixels_MQ.new_empty(len(pixels_MQ), dtype=torch.float32)
    return _launch(None, sum_M, pixels_MQ, image_BCHW, patch_M, patch_size, mean_C, std_C, normalized).sum()


@triton_op("mvlm::patch_l1_backward", mutates_args={})
def patch_l1_backward(
    upstream: Tensor,
    pixels_MQ: Tensor,
    image_BCHW: Tensor,
    patch_M: Tensor,
    patch_size: int,
    mean_C: Tensor,
    std_C: Tensor,
    normalized: bool,
) -> Tensor:
    """The gradient at the pixels: the scalar `upstream` times the sign of each difference."""
    gradient_MQ = pixels_MQ.new_empty(pixels_MQ.shape)
    return _launch(upstream, gradient_MQ, pixels_MQ, image_BCHW, patch_M, patch_size, mean_C, std_C, normalized)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pixels_MQ, image_BCHW, patch_M, ctx.patch_size, mean_C, std_C, ctx.normalized = inputs
    ctx.save_for_backward(pixels_MQ, image_BCHW, patch_M, mean_C, std_C)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    pixels_MQ, image_BCHW, patch_M, *channels = ctx.saved_tensors
    gradient_MQ = patch_l1_backward(upstream, pixels_MQ, image_BCHW, patch_M, ctx.patch_size, *channels, ctx.normalized)
    return (gradient_MQ, *[None] * 6)


patch_l1.register_autograd(_backward, setup_context=_save)
