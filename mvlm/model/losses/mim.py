"""Masked image modelling: what do the masked patches show? (paper, section 3.2)"""

from __future__ import annotations

from torch import Tensor

from mvlm.kernels.constants import constant
from mvlm.kernels.patch_l1 import PATCH_L1


def mim_loss(
    pixels_MQ: Tensor,
    image_BCHW: Tensor,
    patch_M: Tensor,
    patch_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    masked_patches: Tensor,
    parts: int,
    normalized: bool,
) -> Tensor:
    """L1 over the values of the M masked patches of a micro-batch, as its share of the global batch's mean.

    Args:
        pixels_MQ: predicted patches of the normalised image, each laid out as rows, columns, channels.
        image_BCHW: uint8.
        patch_M: int64, which patch each row predicts: the image's number times N, plus the patch's number in it.
        patch_size: P, pixels.
        mean, std: of each channel's values between 0 and 1.
        masked_patches: how many patches the whole global batch masks.
        parts: micro-batches in it, whose results are averaged.
        normalized: standardise each target patch (MAE's `norm_pix_loss`).
    """
    mean_C, std_C = (constant(channels, image_BCHW.device) for channels in (mean, std))
    total = PATCH_L1(pixels_MQ, image_BCHW, patch_M, patch_size, mean_C, std_C, normalized)
    return total * parts / (masked_patches * pixels_MQ.shape[1])
