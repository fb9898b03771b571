"""L1 distance between predicted patches and the masked ones of the image, read from the image in place."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op

LARGEST = 4096
"""The most values of a patch that the Triton kernel holds at once: 36 pixels a side."""


def patch_l1(
    pixels_MQ: Tensor,
    image_BCHW: Tensor,
    patch_M: Tensor,
    patch_size: int,
    mean_C: Tensor,
    std_C: Tensor,
    normalized: bool,
) -> Tensor:
    """Sum of |pixels - target| over the values of M patches, an fp32 scalar; the gradient goes to the pixels alone.

    Args:
        pixels_MQ: predicted patches, each laid out as rows, columns, channels.
        image_BCHW: values from 0 to 255 of any type and stride, whole patches a side.
        patch_M: int64, which patch each row predicts: the image's number times N, plus the patch's number in it, row
            by row.
        patch_size: P, pixels.
        mean_C, std_C: fp32; the target is (image / 255 - mean) / std.
        normalized: standardise each target patch.
    """
    cells = image_BCHW.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    rows, columns = cells.shape[2:4]
    target_MPPC = cells[patch_M // (rows * columns), :, patch_M // columns % rows, patch_M % columns].movedim(1, -1)
    target_MQ = ((target_MPPC.float() / 255 - mean_C) / std_C).flatten(1)
    if normalized:
        target_MQ = standardize(target_MQ)
    return F.l1_loss(pixels_MQ.float(), target_MQ, reduction="sum")


def standardize(patches_MQ: Tensor) -> Tensor:
    """Each patch with mean 0 and variance 1 (MAE, section 4.1)."""
    mean, variance = patches_MQ.mean(-1, keepdim=True), patches_MQ.var(-1, keepdim=True)
    return (patches_MQ - mean) / (variance + 1e-6).sqrt()


def _in_triton(*args: object) -> Tensor:
    from mvlm.kernels.patch_l1_triton import patch_l1

    return patch_l1(*args)


def _why_not(pixels_MQ: Tensor, image_BCHW: Tensor, *_: object) -> str | None:
    if pixels_MQ.shape[1] > LARGEST:
        return f"a patch has {pixels_MQ.shape[1]} values, more than {LARGEST}"
    return probes.not_for_triton(pixels_MQ, image_BCHW)


PATCH_L1 = Op(
    "patch_l1",
    Implementation("triton", _in_triton, probes.triton, _why_not, library="triton"),
    Implementation("torch", patch_l1),
)
