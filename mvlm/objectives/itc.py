"""Image-text contrastive loss over the whole global batch (ALBEF, section 3.2, without momentum and queue)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import Encoded, Pool


def itc_loss(pairs: Encoded, temperature: Tensor, exclude_duplicates: bool) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy over the G pairs, in fp32.

    Args:
        pairs: G unit features a side; pair i is the positive of row i and of column i.
        temperature: the similarities' divisor.
        exclude_duplicates: pairs of the same image or the same caption are no negatives of each other.
    """
    logits_GG = pairs.image_BE.float() @ pairs.text_BE.float().T / temperature
    if exclude_duplicates:
        logits_GG = logits_GG.masked_fill(duplicates(pairs.image_id_B, pairs.caption_id_B), float("-inf"))
    target_G = torch.arange(len(logits_GG), device=logits_GG.device)
    return (F.cross_entropy(logits_GG, target_G) + F.cross_entropy(logits_GG.T, target_G)) / 2


def duplicates(image_id: Tensor, caption_id: Tensor) -> Tensor:
    """... x K ids -> ... x K x K, True where two different pairs share their image or their caption."""
    same = image_id[..., :, None] == image_id[..., None, :]
    same |= caption_id[..., :, None] == caption_id[..., None, :]
    return same & ~torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)


def place(own: Encoded, pool: Pool) -> Encoded:
    """The global batch's features with this micro-batch's own put in, which alone carry gradient.

    Each micro-batch holds the gradient of the whole loss with respect to its own features only, so the sum
    over micro-batches is the loss's gradient. Data parallelism takes their mean: the own features' gradient is
    therefore multiplied by the number of parts. The temperature's is whole in every part and its mean is right.
    """

    whole = pool.encoded(own)

    def put(name: str) -> Tensor:
        own_BE, pool_GE = getattr(own, name), getattr(whole, name).detach()
        amplified = _ScaleGradient.apply(own_BE, float(pool.parts))
        return torch.cat([pool_GE[: pool.start], amplified, pool_GE[pool.start + len(own_BE) :]])

    return replace(whole, image_BE=put("image_BE"), text_BE=put("text_BE"))


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.factor, None  # type: ignore[attr-defined]
