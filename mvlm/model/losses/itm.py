"""Image-text matching: is this the sentence of this image? (ALBEF, section 3.2)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import IGNORE, Encoded, MetricAccumulator
from mvlm.kernels.negatives import NEGATIVES, duplicates


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
        exclude_duplicates: a pair of the same image or caption is never drawn.
        uniform: draw all candidates alike.

    Returns:
        The negative image of text i and the negative text of image i, B rows of the micro-batch each; they say nothing
        where `counted_examples` leaves the pair's negatives out.
    """
    ids_B2 = torch.stack([pairs.image_id_B, pairs.caption_id_B], 1) if exclude_duplicates else None

    def draw(own_BE: Tensor, others_BE: Tensor, direction: int) -> Tensor:
        key = 2 * seed + direction
        return NEGATIVES(own_BE, others_BE, temperature, position_B, group, key, ids_B2, uniform)

    return draw(pairs.text_BE, pairs.image_BE, 0), draw(pairs.image_BE, pairs.text_BE, 1)


def counted_examples(image_id_B: Tensor, caption_id_B: Tensor, group: int, exclude_duplicates: bool) -> Tensor:
    """bool B3, which examples of a pair the loss counts: the pair itself, and its two negatives where there are such.

    A group whose other pairs all show the same image or say the same has none: to call one of them "no match" would be
    wrong.

    Args:
        image_id_B, caption_id_B, group, exclude_duplicates: as for `hard_negatives`.
    """
    counted_B3 = torch.ones(len(image_id_B), 3, dtype=torch.bool, device=image_id_B.device)
    if exclude_duplicates:
        same_gKK = duplicates(torch.stack([image_id_B, caption_id_B], 1), group)
        counted_B3[:, 1:] = ~same_gKK.all(-1).view(-1, 1)
    return counted_B3


def itm_loss(
    logits_BX2: Tensor, counted_BX: Tensor, examples: Tensor, parts: int, metrics: MetricAccumulator | None = None
) -> Tensor:
    """Two-way cross-entropy of a micro-batch's pairs in X examples each, as its share of the global batch's mean.

    Args:
        logits_BX2: of the pair itself, then of its negatives; index 1 means match.
        counted_BX: bool, the examples that count.
        examples: how many of the whole global batch count.
        parts: micro-batches in it, whose results are averaged.
        metrics: gets `itm_accuracy`.
    """
    if metrics:
        match_BX = logits_BX2.detach()[..., 1] > logits_BX2.detach()[..., 0]
        metrics.count("itm_accuracy", torch.cat([match_BX[:, :1], ~match_BX[:, 1:]], dim=1), counted_BX)
    target_BX = torch.zeros_like(counted_BX, dtype=torch.int64)
    target_BX[:, 0] = 1
    target_BX = target_BX.masked_fill(~counted_BX, IGNORE)
    total = F.cross_entropy(logits_BX2.float().flatten(0, 1), target_BX.flatten(), ignore_index=IGNORE, reduction="sum")
    return total * parts / examples
