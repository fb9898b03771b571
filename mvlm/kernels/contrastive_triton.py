"""The contrastive loss in Triton, by tiles of own rows and others, so that B x U similarities never exist.

A program takes a block of own rows and a span of the others. Spans fill the GPU if there are few own rows; their
results are put together in torch, without atomics.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvlm.kernels.triton_operators import triton_op, wrap_triton

TILE = {"ROWS": 32, "COLUMNS": 16, "CHUNK": 16}
"""Own rows and others of a tile, and columns of features at a time: the most that registers hold on sm_80 and sm_90,
with and without ids, compiled by Triton 3.6 and 3.9; larger ones spill."""
GRADIENT_WARPS = 8

LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Below every score."""

PROGRAMS = 256
"""Programs to aim at: about two for each multiprocessor of a large GPU."""


@triton.jit
def load_rows(features, rows, count, first, width, BLOCK: tl.constexpr):
    """BLOCK columns, from `first` on, of a tile of features in fp32, zero beyond their end."""
    column = first + tl.arange(0, BLOCK)
    at = features + rows.to(tl.int64)[:, None] * width + column[None, :]
    return tl.load(at, mask=(rows < count)[:, None] & (column < width)[None, :], other=0).to(tl.float32)


@triton.jit
def products(
    own,
    others,
    rows,
    columns,
    count,
    total,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """own_i · others_j of a tile, added up over pieces of the width that fit registers."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, width, CHUNK):
        own_piece = load_rows(own, rows, count, first, width, CHUNK)
        piece = load_rows(others, columns, total, first, width, CHUNK)
        sums = tl.dot(own_piece, tl.trans(piece), sums, input_precision=PRECISION)
    return sums


@triton.jit
def left_out(own_ids, ids, rows, others, start, count, total):
    """Where a pair of the tile is not part of the sum: it has the same image or caption, and is not the positive."""
    same = rows[:, None] < 0
    for kind in tl.static_range(2):
        mine = tl.load(own_ids + rows.to(tl.int64) * 2 + kind, mask=rows < count, other=0)
        theirs = tl.load(ids + others.to(tl.int64) * 2 + kind, mask=others < total, other=0)
        same |= mine[:, None] == theirs[None, :]
    return same & ((start + rows)[:, None] != others[None, :])


@triton.jit
def sum_row_exps(
    own,
    others,
    temperature,
    own_ids,
    ids,
    results,
    start,
    count,
    total,
    span,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The log-sum-exp of a block of rows over one span of the others."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * span
    divisor = tl.load(temperature).to(tl.float32)
    highest = tl.full([ROWS], LOWEST, tl.float32)  # finite, whatever a tile leaves out
    sums = tl.zeros([ROWS], tl.float32)
    for offset in range(0, span, COLUMNS):
        column = first + offset + tl.arange(0, COLUMNS)
        scores = products(own, others, row, column, count, total, width, ROWS, COLUMNS, CHUNK, "tf32x3") / divisor
        scores = tl.where((column < total)[None, :], scores, float("-inf"))
        if ids is not None:
            scores = tl.where(left_out(own_ids, ids, row, column, start, count, total), float("-inf"), scores)
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
    own_ids,
    ids,
    results,
    start,
    count,
    total,
    span,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The gradient at a block of rows from one span of the others."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * span
    divisor = tl.load(temperature).to(tl.float32)
    row_lse = tl.load(lse_own + row, mask=row < count, other=0)
    gradient = tl.zeros([ROWS, WIDTH], tl.float32)
    for offset in range(0, span, COLUMNS):
        column = first + offset + tl.arange(0, COLUMNS)
        scores = products(own, others, row, column, count, total, width, ROWS, COLUMNS, CHUNK, "tf32x3") / divisor
        scores = tl.where((column < total)[None, :], scores, float("-inf"))
        if ids is not None:
            scores = tl.where(left_out(own_ids, ids, row, column, start, count, total), float("-inf"), scores)
        column_lse = tl.load(lse_others + column, mask=column < total, other=0)
        # Above 0 only by rounding; NaN passes.
        by_row = tl.minimum(scores - row_lse[:, None], 0, propagate_nan=tl.PropagateNan.ALL)
        by_column = tl.minimum(scores - column_lse[None, :], 0, propagate_nan=tl.PropagateNan.ALL)
        weights = (tl.exp(by_row) + tl.exp(by_column)) / 2
        weights -= tl.where((start + row)[:, None] == column[None, :], 1.0, 0.0)
        tile = load_rows(others, column, total, 0, width, WIDTH)
        gradient = tl.dot(weights, tile, gradient, input_precision="tf32x3")
    within = tl.arange(0, WIDTH)
    at = results + (tl.program_id(1).to(tl.int64) * count + row)[:, None] * width + within[None, :]
    tl.store(at, gradient / divisor, mask=(row < count)[:, None] & (within < width)[None, :])


def _spans(count: int, total: int) -> tuple[int, int, int]:
    """Blocks of own rows, spans of the others, and pairs of a span."""
    blocks = triton.cdiv(count, TILE["ROWS"])
    wanted = max(1, PROGRAMS // max(1, blocks))
    span = triton.cdiv(total, wanted * TILE["COLUMNS"]) * TILE["COLUMNS"]
    return blocks, triton.cdiv(total, span), span


@triton_op("mvlm::log_sum_exps", mutates_args={})
def log_sum_exps(
    own_BE: Tensor,
    others_UE: Tensor,
    temperature: Tensor,
    start: int,
    own_ids_B2: Tensor | None = None,
    ids_U2: Tensor | None = None,
) -> Tensor:
    """As `mvlm.kernels.contrastive.log_sum_exps`, without a B x U tensor."""
    (count, width), total = own_BE.shape, len(others_UE)
    blocks, spans, span = _spans(count, total)
    lse_spans_B = own_BE.new_empty((spans, count), dtype=torch.float32)
    if count:
        wrap_triton(sum_row_exps)[(blocks, spans)](
            own_BE.contiguous(),
            others_UE.contiguous(),
            temperature,
            None if own_ids_B2 is None else own_ids_B2.contiguous(),
            None if ids_U2 is None else ids_U2.contiguous(),
            lse_spans_B,
            start,
            count,
            total,
            span,
            width,
            **TILE,
        )
    return lse_spans_B.logsumexp(0)


@triton_op("mvlm::contrastive_gradient", mutates_args={})
def contrastive_gradient(
    own_BE: Tensor,
    others_UE: Tensor,
    temperature: Tensor,
    start: int,
    lse_B: Tensor,
    lse_U: Tensor,
    own_ids_B2: Tensor | None = None,
    ids_U2: Tensor | None = None,
) -> Tensor:
    """As `mvlm.kernels.contrastive.contrastive_gradient`, without a B x U tensor."""
    (count, width), total = own_BE.shape, len(others_UE)
    blocks, spans, span = _spans(count, total)
    gradient_spans_BE = own_BE.new_empty((spans, count, width), dtype=torch.float32)
    if count:
        wrap_triton(sum_weighted)[(blocks, spans)](
            own_BE.contiguous(),
            others_UE.contiguous(),
            temperature,
            lse_B.contiguous(),
            lse_U.contiguous(),
            None if own_ids_B2 is None else own_ids_B2.contiguous(),
            None if ids_U2 is None else ids_U2.contiguous(),
            gradient_spans_BE,
            start,
            count,
            total,
            span,
            width,
            **TILE,
            WIDTH=max(16, triton.next_power_of_2(width)),
            num_warps=GRADIENT_WARPS,
        )
    return gradient_spans_BE.sum(0)
