"""RandAugment of finished images, without the operations that change colours, since captions name them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from mvlm.data.images.decode import native_is_missing

if not native_is_missing:
    from mvlm.data.images import _native

GREY = 128
"""What is shown where a moved image leaves the view empty."""

Matrix = tuple[float, float, float, float, float, float]
"""Output (x, y) shows the input's (m0 x + m1 y + m2, m3 x + m4 y + m5), measured from the upper left corner."""


def randaugment(view: np.ndarray, rng: np.random.Generator, operations: int, magnitude: int) -> None:
    """Apply `operations` of the list below, drawn with replacement, at `magnitude` of 10 in a random direction.

    `view`, uint8 [3, size, size] and contiguous, is changed in place.
    """
    changed = view
    for choice in rng.integers(len(OPERATIONS), size=operations) if operations else ():
        sign = 1 if rng.random() < 0.5 else -1
        changed = OPERATIONS[choice](changed, sign * magnitude / 10)
    if changed is not view:
        view[:] = changed


def identity(view: np.ndarray, level: float) -> np.ndarray:
    return view


def autocontrast(view: np.ndarray, level: float) -> np.ndarray:
    """Stretch to the full range by one map for all channels: each by its own would change the hue."""
    low, high = int(view.min()), int(view.max())
    if low == high:
        return view
    stretched = np.clip((np.arange(256) - low) * 255 / (high - low), 0, 255).round()
    return _mapped(view, stretched)


def brightness(view: np.ndarray, level: float) -> np.ndarray:
    """Towards white or black: scaling would clip single channels and turn orange into yellow."""
    levels = np.arange(256)
    goal = 255 if level > 0 else 0
    return _mapped(view, levels + 0.5 * abs(level) * (goal - levels))


def sharpness(view: np.ndarray, level: float) -> np.ndarray:
    factor = 1 + 0.9 * level
    if native_is_missing:
        return _to_array(ImageEnhance.Sharpness(_to_image(view)).enhance(factor))
    out = np.empty_like(view)
    _native.sharpen(view, view.shape[1], factor, out)
    return out


def shear_x(view: np.ndarray, level: float) -> np.ndarray:
    return warp(view, (1, 0.3 * level, 0, 0, 1, 0))


def shear_y(view: np.ndarray, level: float) -> np.ndarray:
    return warp(view, (1, 0, 0, 0.3 * level, 1, 0))


def translate_x(view: np.ndarray, level: float) -> np.ndarray:
    return warp(view, (1, 0, 10 / 224 * view.shape[1] * level, 0, 1, 0))


def translate_y(view: np.ndarray, level: float) -> np.ndarray:
    return warp(view, (1, 0, 0, 0, 1, 10 / 224 * view.shape[1] * level))


def rotate(view: np.ndarray, level: float) -> np.ndarray:
    """By up to 30 degrees, counter-clockwise where `level` is positive, about the middle."""
    angle, middle = math.radians(30 * level), view.shape[1] / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return warp(view, (cos, -sin, middle * (1 - cos + sin), sin, cos, middle * (1 - cos - sin)))


def warp(view: np.ndarray, matrix: Matrix) -> np.ndarray:
    """The image seen through `matrix`, interpolated between its four nearest pixels."""
    if native_is_missing:
        image = _to_image(view)
        fill = (GREY, GREY, GREY)
        return _to_array(
            image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)
        )
    out = np.empty_like(view)
    _native.warp(view, view.shape[1], matrix, out)
    return out


def _mapped(view: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each level replaced by the table's; bytes do that several times faster than an index of numpy."""
    levels = view.tobytes().translate(table.astype(np.uint8).tobytes())
    return np.frombuffer(levels, np.uint8).reshape(view.shape)


def _to_image(view: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0)))


def _to_array(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


OPERATIONS: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (
    identity,
    autocontrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
)
"""Each takes uint8 [3, size, size] and a level from -1 to 1; the limits are ALBEF's, the pixels scaled to the size.

They return an array of their own, or the one they were given, which they leave as it is.
"""
