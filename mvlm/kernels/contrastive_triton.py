"""The contrastive loss in Triton: tiles of own rows by the global batch, which never exists as B x G similarities.

A program takes a block of own rows and a span of the others. Spans fill the GPU where there are few own rows; their
results are put together in torch, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

ROWS, COLUMNS = 32, 32
"""Own rows and others of a tile."""

PROGRAMS = 256
"""Programs to aim at: about two for each multiprocessor of a large GPU."""


@triton.jit
def load_rows(features, rows, count, width, BLOCK: tl.constexpr):
    """A tile of features in fp32, zero where there are none."""
    column = tl.arange(0, BLOCK)
    at = features + rows.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(at, mask=(rows < count)[:, None] & (column < width)[None, :], other=0).to(tl.float32)


@triton.jit
def left_out(ids, positives, others, total):
    """Where a pair of the tile is none of the sum: beyond the batch, or of the same image or caption."""
    inside = others < total
    same = positives[:, None] < 0
    for kind in tl.static_range(2):
        mine = tl.load(ids + positives.to(tl.int64) * 2 + kind, mask=positives < total, other=0)
        theirs = tl.load(ids + others.to(tl.int64) * 2 + kind, mask=inside, other=0)
        same |= mine[:, None] == theirs[None, :]
    return same & (positives[:, None] != others[None, :])


@triton.jit
def sum_row_exps(
    own,
    others,
    temperature,
    ids,
    results,
    start,
    count,
    total,
    span,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The log-sum-exp of a block of rows over one span of the others."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * span
    divisor = tl.load(temperature).to(tl.float32)
    own_tile = load_rows(own, row, count, width, WIDTH)
    # From the positive's score on the maximum is finite, whatever a tile leaves out.
    highest = tl.sum(own_tile * load_rows(others, start + row, total, width, WIDTH), 1) / divisor
    sums = tl.zeros([ROWS], tl.float32)
    for offset in range(0, span, COLUMNS):
        column = first + offset + tl.arange(0, COLUMNS)
        tile = load_rows(others, column, total, width, WIDTH)
        scores = tl.dot(own_tile, tl.trans(tile), input_precision="tf32x3") / divisor
        scores = tl.where((column < total)[None, :], scores, float("-inf"))
        if ids is not None:
            scores = tl.where(left_out(ids, start + row, column, total), float("-inf"), scores)
        raised = tl.maximum(highest, tl.max(scores, 1))
        sums = sums * tl.exp(highest - raised) + tl.sum(tl.exp(scores - raised[:, None]), 1)
        highest = raised
    tl.store(results + tl.program_id(1).to(tl.int64) * count + row, highest + tl.log(sums), mask=row < count)


@triton.jit
def sum_weighted(
    own,
    others,
    temperature,
    lse_own,
    lse_others,
    ids,
    results,
    start,
    count,
    total,
    span,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The gradient at a block of rows from one span of the others."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * span
    divisor = tl.load(temperature).to(tl.float32)
    own_tile = load_rows(own, row, count, width, WIDTH)
    row_lse = tl.load(lse_own + row, mask=row < count, other=0)
    gradient = tl.zeros([ROWS, WIDTH], tl.float32)
    for offset in range(0, span, COLUMNS):
        column = first + offset + tl.arange(0, COLUMNS)
        tile = load_rows(others, column, total, width, WIDTH)
        scores = tl.dot(own_tile, tl.trans(tile), input_precision="tf32x3") / divisor
        scores = tl.where((column < total)[None, :], scores, float("-inf"))
        if ids is not None:
            scores = tl.where(left_out(ids, start + row, column, total), float("-inf"), scores)
        column_lse = tl.load(lse_others + column, mask=column < total, other=0)
        # Above 0 by rounding alone; NaN goes on as it is.
        by_row = tl.minimum(scores - row_lse[:, None], 0, propagate_nan=tl.PropagateNan.ALL)
        by_column = tl.minimum(scores - column_lse[None, :], 0, propagate_nan=tl.PropagateNan.ALL)
        weights = (tl.exp(by_row) + tl.exp(by_column)) / 2
        weights -= tl.where((start + row)[:, None] == column[None, :], 1.0, 0.0)
        gradient += tl.dot(weights, tile, input_precision="tf32x3")
    within = tl.arange(0, WIDTH)
    at = results + (tl.program_id(1).to(tl.int64) * count + row)[:, None] * width + within[None, :]
    tl.store(at, gradient / divisor, mask=(row < count)[:, None] & (within < width)[None, :])


def _spans(count: int, total: int) -> tuple[int, int, int]:
    """Blocks of own rows, spans of the others, and pairs of a span."""
    blocks = triton.cdiv(count, ROWS)
    wanted = max(1, PROGRAMS // max(1, blocks))
    span = triton.cdiv(triton.cdiv(total, wanted), COLUMNS) * COLUMNS
    return blocks, triton.cdiv(total, span), span


@triton_op("mvlm::log_sum_exps", mutates_args={})
def log_sum_exps(
    own_BE: Tensor, others_GE: Tensor, temperature: Tensor, start: int, ids_G2: Tensor | None = None
) -> Tensor:
    """As `mvlm.kernels.contrastive.log_sum_exps`, in memory that grows with neither B x G nor G."""
    (count, width), total = own_BE.shape, len(others_GE)
    blocks, spans, span = _spans(count, total)
    lse_spans_B = own_BE.new_empty((spans, count), dtype=torch.float32)
    if count:
        wrap_triton(sum_row_exps)[(blocks, spans)](
            own_BE.contiguous(),
            others_GE.contiguous(),
            temperature,
            None if ids_G2 is None else ids_G2.contiguous(),
            lse_spans_B,
            start,
            count,
            total,
            span,
            width,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            WIDTH=max(16, triton.next_power_of_2(width)),
        )
    return lse_spans_B.logsumexp(0)


@triton_op("mvlm::contrastive_gradient", mutates_args={})
def contrastive_gradient(
    own_BE: Tensor,
    others_GE: Tensor,
    temperature: Tensor,
    start: int,
    lse_B: Tensor,
    lse_G: Tensor,
    ids_G2: Tensor | None = None,
) -> Tensor:
    """As `mvlm.kernels.contrastive.contrastive_gradient`, in memory that grows with neither B x G nor G."""
    (count, width), total = own_BE.shape, len(others_GE)
    blocks, spans, span = _spans(count, total)
    gradient_spans_BE = own_BE.new_empty((spans, count, width), dtype=torch.float32)
    if count:
        wrap_triton(sum_weighted)[(blocks, spans)](
            own_BE.contiguous(),
            others_GE.contiguous(),
            temperature,
            lse_B.contiguous(),
            lse_G.contiguous(),
            None if ids_G2 is None else ids_G2.contiguous(),
            gradient_spans_BE,
            start,
            count,
            total,
            span,
            width,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            WIDTH=max(16, triton.next_power_of_2(width)),
        )
    return gradient_spans_BE.sum(0)
