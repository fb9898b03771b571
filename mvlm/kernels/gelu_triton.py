"""The backward pass of GELU in Triton: its gradient, its result recomputed, and the gradient's sum over rows.

The sum is the gradient of the bias of the layer before. A fixed number of programs add up their rows, and torch adds up
these parts, always in the same order and without atomics.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvlm.kernels.triton_operators import triton_op, wrap_triton

TILE = {"ROWS": 8, "COLUMNS": 256}
"""At a time: two loads of 16 bytes per thread in bf16."""
WARPS = 4
PROGRAMS = 128
"""Programs that share the rows of 256 columns: with a feed-forward's 3,072, ten per multiprocessor of an H100."""


@triton.jit
def differentiate_gelu(grad, x, active, parts, rows, width, programs, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Every `programs`-th block of rows: the gradient in place of the upstream one, GELU if it is wanted, the sums."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    program = tl.program_id(1)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, rows, programs * ROWS):
        row = first + program * ROWS + tl.arange(0, ROWS)
        there = (row < rows)[:, None] & (column < width)[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        value = tl.load(x + at, mask=there, other=0).to(tl.float32)
        upstream = tl.load(grad + at, mask=there, other=0).to(tl.float32)
        below = 0.5 * (1 + tl.erf(value * 0.7071067811865476))
        if active is not None:
            tl.store(active + at, (value * below).to(active.dtype.element_ty), mask=there)
        density = 0.3989422804014327 * tl.exp(-0.5 * value * value)
        upstream *= below + value * density
        sums += upstream
        tl.store(grad + at, upstream.to(grad.dtype.element_ty), mask=there)
    tl.store(parts + program.to(tl.int64) * width + column, tl.sum(sums, 0), mask=column < width)


@triton_op("mvlm::gelu_backward_", mutates_args={"grad_RO"})
def gelu_backward_(grad_RO: Tensor, x_RO: Tensor, wants_active: bool) -> tuple[Tensor, Tensor]:
    """Turns the gradient of GELU's result, contiguous, into that of its input x, contiguous.

    Returns:
        GELU's result RO, empty if it is not wanted; and the fp32 sum O of the new gradient's rows.
    """
    rows, width = x_RO.shape
    active_RO = torch.empty_like(x_RO) if wants_active else None
    programs = max(min(triton.cdiv(rows, TILE["ROWS"]), PROGRAMS), 1)
    part_PO = x_RO.new_empty(programs, width, dtype=torch.float32)
    grid = triton.cdiv(width, TILE["COLUMNS"]), programs
    wrap_triton(differentiate_gelu)[grid](
        grad_RO, x_RO, active_RO, part_PO, rows, width, programs, **TILE, num_warps=WARPS
    )
    return x_RO.new_empty(0) if active_RO is None else active_RO, part_PO.sum(0)
