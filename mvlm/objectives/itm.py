"""Image-text matching: is this the sentence of this image? (ALBEF, section 3.2)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import Encoded
from mvlm.kernels.negatives import NEGATIVES


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

    Candidates are the other pairs of the same group of consecutive positions; one is drawn with the probability of
    the softmaxed similarity, by noise that is a function of the seed and the two positions alone.

    Args:
        pairs: the micro-batch's unit features, B a multiple of `group`.
        position_B: samples seen before each pair.
        exclude_duplicates: a pair of the same image or caption is drawn only where nothing else is there.
        uniform: draw all candidates alike.

    Returns:
        image_idx_B (the negative image of text i), text_idx_B (the negative text of image i), rows of the micro-batch.
    """
    ids_B2 = torch.stack([pairs.image_id_B, pairs.caption_id_B], 1) if exclude_duplicates else None

    def draw(own_BE: Tensor, others_BE: Tensor, direction: int) -> Tensor:
        key = 2 * seed + direction
        return NEGATIVES(own_BE, others_BE, temperature, position_B, group, key, ids_B2, uniform)

    return draw(pairs.text_BE, pairs.image_BE, 0), draw(pairs.image_BE, pairs.text_BE, 1)


def itm_loss(logits_BX2: Tensor) -> Tensor:
    """Mean two-way cross-entropy of B pairs in X readings each: the pair itself, then its negatives; index 1 means
    match."""
    target_BX = torch.zeros(logits_BX2.shape[:2], dtype=torch.int64, device=logits_BX2.device)
    target_BX[:, 0] = 1
    return F.cross_entropy(logits_BX2.float().flatten(0, 1), target_BX.flatten())


def itm_right(logits_BX2: Tensor) -> Tensor:
    """bool BX, which of these readings are told for what they are: the pair itself a match, its negatives none."""
    match_BX = logits_BX2[..., 1] > logits_BX2[..., 0]
    return torch.cat([match_BX[:, :1], ~match_BX[:, 1:]], dim=1)
