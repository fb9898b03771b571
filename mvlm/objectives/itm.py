"""Image-text matching: is this the sentence of this image? (ALBEF, section 3.2)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import Encoded
from mvlm.objectives.itc import duplicates

_NEVER_UNLESS_ALONE = 1e6  # beyond any similarity at the lowest temperature


@torch.no_grad()
def hard_negatives(
    pairs: Encoded,
    position_B: Tensor,
    temperature: Tensor,
    group: int,
    seed: int,
    exclude_duplicates: bool,
    uniform: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw for every pair one negative image for its text and one negative text for its image.

    Candidates are the other pairs of the same group of K consecutive positions; one is drawn with the
    probability of the softmaxed similarity, as argmax(similarity + Gumbel noise). The noise is a hash of (seed,
    both positions), so the draw depends on no rank, micro-batch or generator state, and argmax needs no
    probabilities that could be NaN.

    Args:
        pairs: the micro-batch's unit features, B a multiple of `group`.
        position_B: samples seen before each pair.
        uniform: draw all candidates alike.

    Returns:
        image_idx_B (the negative image of text i), text_idx_B (the negative text of image i), rows of the micro-batch.
    """
    image_gKE, text_gKE = (x.float().unflatten(0, (-1, group)) for x in (pairs.image_BE, pairs.text_BE))
    logits_gKK = image_gKE @ text_gKE.mT / temperature
    logits_gKK = torch.zeros_like(logits_gKK) if uniform else logits_gKK.nan_to_num(0.0)
    if exclude_duplicates:
        ids = (x.unflatten(0, (-1, group)) for x in (pairs.image_id_B, pairs.caption_id_B))
        logits_gKK = logits_gKK - _NEVER_UNLESS_ALONE * duplicates(*ids)
    own = torch.eye(group, dtype=torch.bool, device=logits_gKK.device)
    position_gK = position_B.unflatten(0, (-1, group))
    first_g1 = torch.arange(0, len(position_B), group, device=position_B.device)[:, None]

    def draw(scores_gKK: Tensor, direction: int) -> Tensor:
        noise_gKK = gumbel_noise(2 * seed + direction, position_gK[:, :, None], position_gK[:, None, :])
        return ((scores_gKK + noise_gKK).masked_fill(own, float("-inf")).argmax(-1) + first_g1).flatten()

    return draw(logits_gKK.mT, 0), draw(logits_gKK, 1)


def itm_loss(logits_positive: Tensor, logits_negative: Tensor) -> Tensor:
    """Mean two-way cross-entropy; index 1 means match. B2 and 2B x 2 logits."""
    logits = torch.cat([logits_positive, logits_negative]).float()
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    target[: len(logits_positive)] = 1
    return F.cross_entropy(logits, target)


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
