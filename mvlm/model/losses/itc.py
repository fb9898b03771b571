"""Image-text contrastive loss over the whole global batch (ALBEF, section 3.2, without momentum and queue)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mvlm.batch import Contrast, Encoded, Pool
from mvlm.kernels.contrastive import LOG_SUM_EXPS, contrastive_share, temperature_gradient


def itc_loss(own: Encoded, temperature: Tensor, pool: Pool) -> Tensor:
    """A micro-batch's share of the mean of image-to-text and text-to-image cross-entropy over the G pairs, in fp32.

    Its value is the own pairs' mean. Its gradient at the own features is that of the whole loss times the number of
    parts, so that the mean over micro-batches, which data parallelism takes, has the gradient of the whole.

    Args:
        own: unit features; the image and the text of a pair are each other's positive.
        temperature: the similarities' divisor.
    """
    whole = pool.contrast(own, temperature)
    share = contrastive_share(
        own.image_BE,
        own.text_BE,
        temperature,
        whole.image_GE,
        whole.text_GE,
        whole.lse_G2,
        whole.ids_G2,
        pool.start,
        whole.at_temperature,
    )
    return share * pool.parts / len(whole.lse_G2)


@torch.no_grad()
def contrast(
    micro_batches: list[Encoded],
    starts: list[int],
    temperature: Tensor,
    exclude_duplicates: bool,
    gather: Callable[[Tensor], Tensor] = torch.detach,
) -> Contrast:
    """What the contrastive loss needs of the global batch, from one rank's micro-batches of it.

    Args:
        starts: where each micro-batch begins in the global batch.
        exclude_duplicates: pairs of the same image or the same caption are no negatives of each other.
        gather: concatenates a tensor of every rank along the first dimension.
    """

    def whole(name: str) -> Tensor:
        return torch.cat([gather(getattr(own, name)) for own in micro_batches])

    image_GE, text_GE = whole("image_BE"), whole("text_BE")
    ids_G2 = torch.stack([whole("image_id_B"), whole("caption_id_B")], 1) if exclude_duplicates else None
    lse_G2 = torch.cat(
        [
            gather(
                torch.stack(
                    [
                        LOG_SUM_EXPS(own.image_BE, text_GE, temperature, start, ids_G2),
                        LOG_SUM_EXPS(own.text_BE, image_GE, temperature, start, ids_G2),
                    ],
                    1,
                )
            )
            for own, start in zip(micro_batches, starts, strict=True)
        ]
    )
    own_parts = [
        temperature_gradient(own.image_BE, text_GE, temperature, start, lse_G2, ids_G2)
        for own, start in zip(micro_batches, starts, strict=True)
    ]
    at_temperature = gather(torch.stack(own_parts).sum(0, keepdim=True)).sum()
    return Contrast(image_GE, text_GE, ids_G2, lse_G2, at_temperature)
