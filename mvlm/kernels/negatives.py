"""Hard negatives: one draw from the softmaxed similarities of a group, as argmax(similarity + Gumbel noise)."""

from __future__ import annotations

import torch
from torch import Tensor

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op


def negatives(
    own_BE: Tensor,
    others_BE: Tensor,
    temperature: Tensor,
    position_B: Tensor,
    group: int,
    seed: int,
    ids_B2: Tensor | None,
    uniform: bool,
) -> Tensor:
    """For each pair the row of another of its group, drawn with the probability of softmax(own · others / T).

    The noise is a hash of (seed, both positions), so the draw depends on no rank, micro-batch or generator state, and
    argmax needs no probabilities that could be NaN.

    Args:
        own_BE, others_BE: features of one modality and the other, B a multiple of `group`.
        temperature: T, one value.
        position_B: int64, samples seen before each pair.
        group: K, consecutive pairs that draw from each other.
        ids_B2: image and caption of each pair; one that shares either is never drawn.
        uniform: draw all candidates alike.

    Returns:
        idx_B, int64 rows of the micro-batch; where a group has nothing to draw, some row of it that says nothing.
    """
    own_gKE, others_gKE = (x.float().unflatten(0, (-1, group)) for x in (own_BE, others_BE))
    scores_gKK = own_gKE @ others_gKE.mT / temperature
    scores_gKK = torch.zeros_like(scores_gKK) if uniform else scores_gKK.nan_to_num(0.0)
    position_gK = position_B.unflatten(0, (-1, group))
    scores_gKK = scores_gKK + gumbel_noise(seed, position_gK[:, :, None], position_gK[:, None, :])
    never = torch.eye(group, dtype=torch.bool, device=scores_gKK.device)
    if ids_B2 is not None:
        never = never | duplicates(ids_B2, group)
    first_g1 = torch.arange(0, len(position_B), group, device=position_B.device)[:, None]
    # No finite number is below every similarity: a low temperature makes them as large as it likes.
    return (scores_gKK.masked_fill(never, float("-inf")).argmax(-1) + first_g1).flatten()


def duplicates(ids_B2: Tensor, group: int) -> Tensor:
    """Which pairs of a group have the same image or the same caption, each itself among them -> bool, groups x K x K.

    Args:
        ids_B2: image and caption of each pair, B a multiple of `group`.
    """
    ids_gK2 = ids_B2.unflatten(0, (-1, group))
    return (ids_gK2[:, :, None] == ids_gK2[:, None]).any(-1)


def gumbel_noise(seed: int, row: Tensor, column: Tensor) -> Tensor:
    """Standard Gumbel noise as a function of (seed, row, column), int64 tensors that broadcast; fp32."""
    mixed = _mix(_mix(_mix(torch.full_like(row, seed)) ^ row) ^ column)
    uniform = ((mixed >> 40) & 0xFFFFFF).float().add_(0.5) / 2**24
    return -torch.log(-torch.log(uniform))


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64 with wrapping arithmetic."""
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _in_triton(*args: object) -> Tensor:
    from mvlm.kernels.negatives_triton import negatives

    return negatives(*args)


def _why_not(own_BE: Tensor, others_BE: Tensor, *_: object) -> str | None:
    return probes.not_for_triton(own_BE, others_BE)


NEGATIVES = Op(
    "negatives",
    Implementation("triton", _in_triton, probes.triton, _why_not, version=probes.triton_version),
    Implementation("torch", negatives, version=probes.torch_version),
)
