"""Hard negatives: one draw from the softmaxed similarities of a group, as argmax(similarity + Gumbel noise)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op


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
    """For each pair the row of another in its group, drawn with the probability of softmax(own · others / T).

    The noise is a hash of (seed, both positions), so the draw depends on no rank, micro-batch or generator state, and
    argmax needs no probabilities that could be NaN.

    Args:
        own_BE: features of one modality.
        others_JE: of the other modality, of whole groups.
        temperature: T, one value.
        position_J: int64, samples seen before each pair.
        start: the row of J at which the own pairs begin.
        group: K, consecutive pairs that draw from each other.
        ids_J2: image and caption of each pair; one that shares either is never drawn.
        uniform: draw all candidates with the same probability.

    Returns:
        idx_B, int64 rows of J; for a pair that has nothing to draw, an arbitrary row of its group.
    """
    row_bR, candidate_bK = blocks(len(own_BE), start, group, own_BE.device)
    own_bRE, others_bKE = own_BE.float().view(*row_bR.shape, own_BE.shape[1]), others_JE.float()[candidate_bK]
    scores_bRK = own_bRE @ others_bKE.mT / temperature
    scores_bRK = torch.zeros_like(scores_bRK) if uniform else scores_bRK.nan_to_num(0.0)
    scores_bRK = scores_bRK + gumbel_noise(seed, position_J[row_bR][:, :, None], position_J[candidate_bK][:, None])
    never = row_bR[:, :, None] == candidate_bK[:, None]
    if ids_J2 is not None:
        never = never | duplicates(ids_J2, row_bR, candidate_bK)
    # No finite number is below every similarity: a low temperature can make them arbitrarily large.
    return (scores_bRK.masked_fill(never, float("-inf")).argmax(-1) + candidate_bK[:, :1]).flatten()


def blocks(count: int, start: int, group: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Own pairs in blocks that each lie in one group -> int64 rows of J, of each block's R pairs and K candidates.

    Args:
        count, start: how many own pairs there are, and where they begin, a multiple of `count`.
    """
    row_bR = torch.arange(start, start + count, device=device).view(-1, math.gcd(count, group))
    return row_bR, row_bR[:, :1] // group * group + torch.arange(group, device=device)


def duplicates(ids_J2: Tensor, row_bR: Tensor, candidate_bK: Tensor) -> Tensor:
    """Which candidates have the image or the caption of a pair, itself included -> bool, b x R x K.

    Args:
        ids_J2: image and caption of each pair.
        row_bR, candidate_bK: as `blocks` gives them.
    """
    return (ids_J2[row_bR][:, :, None] == ids_J2[candidate_bK][:, None]).any(-1)


def gumbel_noise(seed: int, row: Tensor, column: Tensor) -> Tensor:
    """Standard Gumbel noise as a function of (seed, row, column), int64 tensors that broadcast; fp32."""
    mixed = _mix(_mix(row ^ _mixed(seed)) ^ column)
    # The greatest would be rounded to 1, and its noise be infinite, above any similarity.
    uniform = (((mixed >> 40) & 0xFFFFFF).float().add_(0.5) / 2**24).clamp_(max=1 - 2**-24)
    return -torch.log(-torch.log(uniform))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64 with wrapping arithmetic."""
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _mixed(x: int) -> int:
    """`_mix` of one number, on the host."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    return x - 2**64 if x >= 2**63 else x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _in_triton(*args: object) -> Tensor:
    from mvlm.kernels.negatives_triton import negatives

    return negatives(*args)


def _why_not(own_BE: Tensor, others_JE: Tensor, *_: object) -> str | None:
    return probes.not_for_triton(own_BE, others_JE)


NEGATIVES = Op(
    "negatives",
    Implementation("triton", _in_triton, probes.triton, _why_not, library="triton"),
    Implementation("torch", negatives),
)
