"""The forms in which calls accept images, and the pixels that the model reads from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvlm.data.images.decode import Decoded
from mvlm.data.images.transforms import eval_view
from mvlm.data.images.upright import upright
from mvlm.data.samples.pictures import read_picture
from mvlm.errors import UserError, first_line

AnyImage = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""The path of a file, a Pillow image, a uint8 array HWC or HW, or a uint8 tensor CHW or HW."""


def listed(images: AnyImage | Iterable[AnyImage]) -> list[AnyImage]:
    """One image or several as a list; an array or a tensor with four dimensions is a batch."""
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    return list(images) if isinstance(images, Iterable) and not isinstance(images, (str, bytes)) else [images]


def view(image: AnyImage, size: int) -> np.ndarray:
    """The whole image as evaluation shows it to the model: uint8 [3, size, size].

    Raises:
        UserError: it is not an image, or its file cannot be read.
    """
    return eval_view(Decoded(opened(image)), size)


def opened(image: AnyImage) -> Image.Image:
    """An image in RGB: upright by its EXIF orientation, transparency on white, more than 8 bits scaled to 8."""
    if isinstance(image, (str, os.PathLike)):
        return read_picture(Path(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"A {type(image).__name__} is not an image: give a path, a Pillow image, an array or a tensor.")
    if 0 in image.size:
        raise UserError(f"An image of {image.width} x {image.height} pixels shows nothing: give one that has some.")
    try:
        return upright(image)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        named = getattr(image, "filename", "") or "A Pillow image"
        raise UserError(f"{named} cannot be read ({first_line(error)}): leave it out, or open it again.") from None


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"An array of {pixels.dtype} and shape {pixels.shape} is not an image: give uint8, an array as height x "
            "width x channels or a tensor as channels x height x width, with 1, 3 or 4 channels."
        )
    return Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def as_mask(masked: np.ndarray | Tensor, images: int, grid: tuple[int, int]) -> Tensor:
    """Which patches of images to mask, bool BN; raises `UserError` if some image has no mask, or an unusable one."""
    rows, columns = grid
    try:
        mask_BN = torch.as_tensor(masked).bool()
    except (TypeError, ValueError) as error:
        raise UserError(f"`masked` cannot be read ({first_line(error)}): give an array of bool.") from None
    if mask_BN.shape != (images, rows * columns) or bool((mask_BN.all(1) | ~mask_BN.any(1)).any()):
        raise UserError(
            f"A mask of shape {tuple(mask_BN.shape)} does not fit {images} images of {rows} x {columns} patches: "
            f"give [{images}, {rows * columns}], True = masked, at least one of each image and not all."
        )
    return mask_BN


def stacked(images: Sequence[AnyImage], size: int) -> Tensor:
    """uint8 [B, 3, size, size]."""
    return torch.from_numpy(np.stack([view(image, size) for image in images]))
