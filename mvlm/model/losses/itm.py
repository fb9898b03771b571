"""Image-text matching: is this the sentence of this image? (ALBEF, section 3.2)"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import IGNORE, Batch, Encoded, MetricAccumulator, Negative, Negatives
from mvlm.kernels.negatives import NEGATIVES, blocks, duplicates


@dataclass(frozen=True)
class NegativeSampler:
    """Draws for every pair one negative image for its text and one negative text for its image.

    Candidates are the other pairs of the same group of consecutive positions; one is drawn with the probability of
    the softmaxed similarity, by noise that is a function of the seed and the two positions alone.

    Attributes:
        group: pairs of each, from the first of the global batch on.
        exclude_duplicates: a pair of the same image or caption is never drawn.
        uniform: draw all candidates with the same probability.
    """

    group: int
    seed: int = 0
    exclude_duplicates: bool = True
    uniform: bool = False

    @torch.no_grad()
    def draw(
        self, own: Encoded, others: Encoded, position_J: Tensor, temperature: Tensor, start: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The negative image of text i and the negative text of image i, B rows of J each.

        They mean nothing for a pair whose negatives `counted` leaves out.

        Args:
            own: unit features of a micro-batch.
            others: of the whole groups that its pairs are in, J of them.
            position_J: samples seen before each of these.
            start: where the own pairs begin among them.
        """
        ids_J2 = torch.stack([others.image_id_B, others.caption_id_B], 1) if self.exclude_duplicates else None

        def draw(own_BE: Tensor, others_JE: Tensor, direction: int) -> Tensor:
            key = 2 * self.seed + direction
            return NEGATIVES(own_BE, others_JE, temperature, position_J, start, self.group, key, ids_J2, self.uniform)

        return draw(own.text_BE, others.image_BE, 0), draw(own.image_BE, others.text_BE, 1)

    def counted(self, ids_J2: Tensor, count: int, start: int = 0) -> Tensor:
        """bool B3, which examples of a pair the loss counts: the pair itself, and its two negatives if it has any.

        A pair that shares its image or caption with each of the others in its group has none: to call one of them "no
        match" would be wrong.

        Args:
            ids_J2: image and caption of the pairs of whole groups.
            count, start: of the own pairs among them, B.
        """
        counted_B3 = torch.ones(count, 3, dtype=torch.bool, device=ids_J2.device)
        if self.exclude_duplicates:
            same_bRK = duplicates(ids_J2, *blocks(count, start, self.group, ids_J2.device))
            counted_B3[:, 1:] = ~same_bRK.all(-1).view(-1, 1)
        return counted_B3

    def within(self, batch: Batch) -> Negatives:
        """For a micro-batch of whole groups: its own rows."""

        def negatives(own: Encoded, temperature: Tensor, *_: Tensor) -> tuple[Negative, Negative]:
            image_B, text_B = self.draw(own, own, batch.position_B, temperature)
            return Negative(image_B), Negative(text_B)

        return negatives


def ids_of(batch: Batch) -> Tensor:
    """What duplicates are known by -> B2, image and caption."""
    return torch.stack([batch.image_id_B, batch.caption_id_B], 1)


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
