"""From encoded images to the uint8 pixels the model reads; normalisation happens on the device.

Augmentation follows ALBEF (arXiv 2107.07651): random resized crop, flip, RandAugment.
"""

from __future__ import annotations

import math

import numpy as np

from mvlm.data.images import augment as augmenting
from mvlm.data.images.decode import Picture

_ASPECT = (3 / 4, 4 / 3)


def train_view(
    picture: Picture,
    size: int,
    rng: np.random.Generator,
    crop_scale: tuple[float, float],
    flip: bool,
    randaugment: tuple[int, int],
    out: np.ndarray | None = None,
    randaugment_kind: str = "same_hue",
) -> np.ndarray:
    """A random view: uint8 [3, size, size], written to `out` if given.

    Args:
        crop_scale: smallest and largest area kept, as fractions of the image's; (1, 1) resizes the whole image.
        flip: mirror it half the time.
        randaugment: number of operations, and magnitude out of 10.
        randaugment_kind: which operations: "same_hue" or "albef".

    Raises:
        BadImage: the part of the image in view is damaged.
    """
    view = np.empty((3, size, size), np.uint8) if out is None else out
    whole = (0, 0, picture.width, picture.height)
    box = whole if crop_scale == (1, 1) else crop_box(rng, picture.width, picture.height, crop_scale)
    # Always drawn, so that a caption that forbids the flip changes nothing else.
    mirrored = rng.random() < 0.5
    picture.show(box, size, flip and mirrored, view)
    augmenting.randaugment(view, rng, *randaugment, randaugment_kind)
    return view


def eval_view(picture: Picture, size: int) -> np.ndarray:
    """The whole image, resized: uint8 [3, size, size].

    Raises:
        BadImage: it is damaged.
    """
    view = np.empty((3, size, size), np.uint8)
    picture.show((0, 0, picture.width, picture.height), size, False, view)
    return view


def crop_box(
    rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of torchvision's RandomResizedCrop: area and aspect drawn until they fit, 10 times."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _ASPECT[1])))
    h = min(height, max(1, round(width / _ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
