"""`negatives` in Triton: keeps the best of a row's noisy scores so far, and never a B x K tensor of them."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvlm.kernels.contrastive_triton import products
from mvlm.kernels.triton_operators import triton_op, wrap_triton

TILE = {"TILE": 16, "CHUNK": 32}
"""Rows and candidates at a time, the fewest that `tl.dot` takes, as groups are small; and columns of features."""

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
BELOW_1 = tl.constexpr(1 - 2**-24)


@triton.jit
def mix(x):
    """The finaliser of splitmix64 on uint64, as `mvlm.kernels.negatives` has it."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def gumbel_noise(seed, rows, columns):
    """Standard Gumbel noise of each row and column in fp32."""
    row_key = mix(mix(seed.to(tl.uint64, bitcast=True)) ^ rows.to(tl.uint64, bitcast=True))
    mixed = mix(row_key[:, None] ^ columns.to(tl.uint64, bitcast=True)[None, :])
    uniform = ((mixed >> 40).to(tl.float32) + 0.5) / 16777216
    return -tl.log(-tl.log(tl.minimum(uniform, BELOW_1)))


@triton.jit
def draw(
    own,
    others,
    temperature,
    positions,
    seeds,
    ids,
    results,
    width,
    start,
    block,
    group,
    tiles,
    UNIFORM: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A tile of own rows, all of one block and so of one group, against the whole of the group."""
    own_first = tl.program_id(0) // tiles * block
    own_end = own_first + block
    own_row = own_first + tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    first = (start + own_first) // group * group
    end = first + group
    row = start + own_row  # of the others
    divisor = tl.load(temperature).to(tl.float32)
    seed = tl.load(seeds)
    row_position = tl.load(positions + row, mask=own_row < own_end, other=0)
    best = tl.full([TILE], float("-inf"), tl.float32)
    index = tl.zeros([TILE], tl.int32) + first
    for offset in range(0, group, TILE):
        column = first + offset + tl.arange(0, TILE)
        if UNIFORM:
            scores = tl.zeros([TILE, TILE], tl.float32)
        else:
            scores = products(own, others, own_row, column, own_end, end, width, TILE, TILE, CHUNK, "ieee") / divisor
            scores = tl.where(scores != scores, 0.0, tl.minimum(tl.maximum(scores, -LARGEST), LARGEST))
        scores += gumbel_noise(seed, row_position, tl.load(positions + column, mask=column < end, other=0))
        never = (row[:, None] == column[None, :]) | (column >= end)[None, :]
        if ids is not None:
            never |= duplicates(ids, row, column, start + own_end, end)
        highest, at = tl.max(tl.where(never, float("-inf"), scores), 1, return_indices=True)
        index = tl.where(highest > best, first + offset + at, index)
        best = tl.maximum(best, highest)
    tl.store(results + own_row, index.to(tl.int64), mask=own_row < own_end)


@triton.jit
def duplicates(ids, rows, columns, row_end, end):
    """Which pairs of a tile have the same image or the same caption."""
    same = rows[:, None] < 0
    for kind in tl.static_range(2):
        mine = tl.load(ids + rows * 2 + kind, mask=rows < row_end, other=0)
        theirs = tl.load(ids + columns * 2 + kind, mask=columns < end, other=0)
        same |= mine[:, None] == theirs[None, :]
    return same


@triton_op("mvlm::negatives", mutates_args={})
def negatives(
    own_BE: Tensor,
    others_JE: Tensor,
    temperature: Tensor,
    position_J: Tensor,
    start: int,
    group: int,
    seed: int,
    ids_J2: Tensor | None,
    uniform: bool,
) -> Tensor:
    """As `mvlm.kernels.negatives.negatives`, without a B x K tensor."""
    count, width = own_BE.shape
    block = math.gcd(count, group)
    tiles = triton.cdiv(block, TILE["TILE"])
    idx_B = position_J.new_empty(count)
    if count:
        wrap_triton(draw)[(count // block * tiles,)](
            own_BE.contiguous(),
            others_JE.contiguous(),
            temperature,
            position_J.contiguous(),
            torch.full((1,), seed, dtype=torch.int64, device=own_BE.device),
            None if ids_J2 is None else ids_J2.contiguous(),
            idx_B,
            width,
            start,
            block,
            group,
            tiles,
            UNIFORM=uniform,
            **TILE,
        )
    return idx_B
