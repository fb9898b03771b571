"""From encoded bytes to the uint8 image the model reads; normalising is left to the device.

Augmentation follows ALBEF (arXiv 2107.07651): random resized crop, flip, RandAugment without the operations
that change colours, since captions name them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from mvlm.data.decoding import BadImage, Picture, load_image, open_picture

__all__ = ["OPERATIONS", "BadImage", "crop_box", "eval_view", "load_image", "open_picture", "train_view"]

_ASPECT = (3 / 4, 4 / 3)
_GREY = (128, 128, 128)


def train_view(
    picture: Picture,
    size: int,
    rng: np.random.Generator,
    crop_scale: tuple[float, float],
    flip: bool,
    randaugment: tuple[int, int],
    out: np.ndarray | None = None,
) -> np.ndarray:
    """A random view: uint8 [3, size, size], in `out` where that is given.

    Args:
        crop_scale: smallest and largest area kept, as shares of the image's; (1, 1) = resized whole.
        flip: mirror it half the time.
        randaugment: operations and magnitude, of 10.

    Raises:
        BadImage: the part of the image that is seen is damaged.
    """
    view = np.empty((3, size, size), np.uint8) if out is None else out
    whole = (0, 0, picture.width, picture.height)
    box = whole if crop_scale == (1, 1) else crop_box(rng, picture.width, picture.height, crop_scale)
    # Drawn in any case, so that a caption that forbids the flip changes nothing else.
    mirrored = rng.random() < 0.5
    picture.show(box, size, flip and mirrored, view)
    _randaugment(view, rng, *randaugment)
    return view


def eval_view(picture: Picture, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """The whole image, resized: uint8 [3, size, size], in `out` where that is given.

    Raises:
        BadImage: it is damaged.
    """
    view = np.empty((3, size, size), np.uint8) if out is None else out
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


def _randaugment(view: np.ndarray, rng: np.random.Generator, operations: int, magnitude: int) -> None:
    """Apply `operations` of the list below, drawn with replacement, at `magnitude` of 10 in a random direction."""
    choices = [(choice, 1 if rng.random() < 0.5 else -1) for choice in rng.integers(len(OPERATIONS), size=operations)]
    image = Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0))) if choices else None
    for choice, sign in choices:
        image = OPERATIONS[choice](image, sign * magnitude / 10)
    if image is not None:
        view[:] = np.asarray(image).transpose(2, 0, 1)


def _identity(image: Image.Image, level: float) -> Image.Image:
    return image


def _autocontrast(image: Image.Image, level: float) -> Image.Image:
    """Stretch to the full range by one map for all channels: each by its own would change the hue."""
    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    if low == high:
        return image
    stretched = np.clip((np.arange(256) - low) * 255 / (high - low), 0, 255).round()
    return image.point(stretched.astype(int).tolist() * 3)


def _brightness(image: Image.Image, level: float) -> Image.Image:
    """Towards white or black: scaling would clip single channels and turn orange into yellow."""
    goal = Image.new("RGB", image.size, "white" if level > 0 else "black")
    return Image.blend(image, goal, 0.5 * abs(level))


def _sharpness(image: Image.Image, level: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level)


def _shear_x(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0.3 * level, 0, 0, 1, 0))


def _shear_y(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * level, 1, 0))


def _translate_x(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0, 10 / 224 * image.width * level, 0, 1, 0))


def _translate_y(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 10 / 224 * image.height * level))


def _rotate(image: Image.Image, level: float) -> Image.Image:
    return image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _affine(image: Image.Image, output_to_input: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, output_to_input, Image.Resampling.BILINEAR, fillcolor=_GREY
    )


OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    _identity,
    _autocontrast,
    _brightness,
    _sharpness,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _rotate,
)
"""Each takes an RGB image and a level from -1 to 1; the limits are ALBEF's, the pixels scaled to the image's size."""
