"""Image-text contrastive loss over the whole global batch (ALBEF, section 3.2, without momentum and queue)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mvlm.batch import Encoded, GatheredFeatures, GlobalBatch, MetricAccumulator
from mvlm.kernels.contrastive import LOG_SUM_EXPS, contrastive_share, temperature_gradient


def itc_loss(
    own: Encoded, temperature: Tensor, global_batch: GlobalBatch, metrics: MetricAccumulator | None = None
) -> Tensor:
    """A micro-batch's share of the mean of image-to-text and text-to-image cross-entropy over the G pairs, in fp32.

    Its value is the own pairs' mean. Its gradient at the own features is that of the whole loss times the number of
    parts, so that the mean over micro-batches, which data parallelism takes, has the gradient of the whole.

    Args:
        own: unit features; the image and the text of a pair are each other's positive.
        temperature: the similarities' divisor.
        metrics: gets it as the value `temperature`.
    """
    if metrics:
        metrics.values["temperature"] = temperature.detach().squeeze()
    gathered = global_batch.gather(own, temperature)
    share = contrastive_share(own.image_BE, own.text_BE, temperature, gathered, global_batch.start)
    return share * global_batch.parts / len(gathered.lse_G2)


@torch.no_grad()
def gather_features(
    micro_batches: list[Encoded],
    starts: list[int],
    temperature: Tensor,
    exclude_duplicates: bool,
    gather: Callable[[Tensor], Tensor] = torch.detach,
) -> GatheredFeatures:
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
    pairs = list(zip(micro_batches, starts, strict=True))

    def lse(own: Encoded, start: int) -> Tensor:
        image_B = LOG_SUM_EXPS(own.image_BE, text_GE, temperature, start, ids_G2)
        return torch.stack([image_B, LOG_SUM_EXPS(own.text_BE, image_GE, temperature, start, ids_G2)], 1)

    lse_G2 = torch.cat([gather(lse(own, start)) for own, start in pairs])
    own_parts = [
        temperature_gradient(own.image_BE, text_GE, temperature, start, lse_G2, ids_G2) for own, start in pairs
    ]
    gradient = gather(torch.stack(own_parts).sum(0, keepdim=True)).sum()
    return GatheredFeatures(image_GE, text_GE, ids_G2, lse_G2, gradient)
