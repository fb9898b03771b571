"""The two reconstruction losses of masked vision and language modelling (paper, section 3.2)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mvlm.kernels.patch_l1 import PATCH_L1

Channels = Tensor | tuple[float, ...]
"""One number a channel."""


def masked_text_loss(total: Tensor, hidden_tokens: Tensor, parts: int) -> Tensor:
    """Cross-entropy of the hidden tokens of a micro-batch, as its share of the mean over the global batch.

    Args:
        total: the sum over the micro-batch's hidden tokens.
        hidden_tokens: how many tokens the whole global batch hides.
        parts: micro-batches in it, whose results are averaged.
    """
    return total * parts / hidden_tokens


def masked_image_loss(
    pixels_MQ: Tensor,
    image_BCHW: Tensor,
    patch_M: Tensor,
    patch_size: int,
    mean: Channels,
    std: Channels,
    hidden_patches: Tensor,
    parts: int,
    normalized: bool,
) -> Tensor:
    """L1 over the values of the M hidden patches of a micro-batch, as its share of the global batch's mean.

    Args:
        pixels_MQ: predicted patches of the normalised image, each laid out as rows, columns, channels.
        image_BCHW: uint8.
        patch_M: int64, which patch each row predicts: the image's number times N, plus the patch's number in it.
        patch_size: P, pixels.
        mean, std: of a value between 0 and 1.
        hidden_patches: how many patches the whole global batch hides.
        parts: micro-batches in it, whose results are averaged.
        normalized: standardise each target patch (MAE's `norm_pix_loss`).
    """
    mean_C, std_C = (_on(image_BCHW.device, channels) for channels in (mean, std))
    total = PATCH_L1(pixels_MQ, image_BCHW, patch_M, patch_size, mean_C, std_C, normalized)
    return total * parts / (hidden_patches * pixels_MQ.shape[1])


def _on(device: torch.device, channels: Channels) -> Tensor:
    return channels if isinstance(channels, Tensor) else _copied(device, tuple(channels))


@cache
def _copied(device: torch.device, channels: tuple[float, ...]) -> Tensor:
    """Kept, because each copy from host memory would wait for the device."""
    return torch.tensor(channels, device=device)
