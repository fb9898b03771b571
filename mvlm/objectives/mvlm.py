"""The two reconstruction losses of masked vision and language modelling (paper, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def masked_text_loss(logits_MV: Tensor, target_M: Tensor, hidden_tokens: Tensor, parts: int) -> Tensor:
    """Cross-entropy of the M hidden tokens of a micro-batch, as its share of the mean over the global batch.

    Args:
        hidden_tokens: how many tokens the whole global batch hides.
        parts: micro-batches in it, whose results are averaged.
    """
    total = F.cross_entropy(logits_MV.float(), target_M, reduction="sum")
    return total * parts / hidden_tokens


def masked_image_loss(
    pixels_MQ: Tensor, target_MQ: Tensor, hidden_patches: Tensor, parts: int, normalized: bool
) -> Tensor:
    """L1 over the values of the M hidden patches of a micro-batch, as its share of the global batch's mean.

    Args:
        pixels_MQ, target_MQ: predicted and true patches of the normalised image.
        hidden_patches: how many patches the whole global batch hides.
        parts: micro-batches in it, whose results are averaged.
        normalized: standardise each target patch (MAE's `norm_pix_loss`).
    """
    target_MQ = target_MQ.float()
    if normalized:
        target_MQ = standardize(target_MQ)
    total = F.l1_loss(pixels_MQ.float(), target_MQ, reduction="sum")
    return total * parts / (hidden_patches * pixels_MQ.shape[-1])


def standardize(patches_MQ: Tensor) -> Tensor:
    """Each patch with mean 0 and variance 1 (MAE, section 4.1)."""
    mean, variance = patches_MQ.mean(-1, keepdim=True), patches_MQ.var(-1, keepdim=True)
    return (patches_MQ - mean) / (variance + 1e-6).sqrt()
