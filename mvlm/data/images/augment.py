"""RandAugment of cropped and resized images, without the operations that change colours, since captions name them:
our own operations, which keep every hue, or ALBEF's ten, two of which treat each channel separately."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from mvlm.data.images.decode import native_is_missing

if not native_is_missing:
    from mvlm.data.images import _native

GREY = 128
"""Fills the parts of the view that a moved image leaves empty."""

Matrix = tuple[float, float, float, float, float, float]
"""Output (x, y) shows the input at (m0 x + m1 y + m2, m3 x + m4 y + m5), measured from the upper left corner."""


def randaugment(
    view: np.ndarray, rng: np.random.Generator, operations: int, magnitude: int, kind: str = "same_hue"
) -> None:
    """Apply `operations` operations, drawn with replacement from a list below, at `magnitude` out of 10.

    `view`, uint8 [3, size, size] and contiguous, is changed in place.

    Args:
        kind: "same_hue" applies each in a random direction; "albef" applies each half the time, in a random direction
            if it moves the image and otherwise in the one ALBEF uses.
    """
    drawn = OPERATIONS if kind == "same_hue" else ALBEF_OPERATIONS
    changed = view
    for choice in rng.integers(len(drawn), size=operations):
        sign = 1 if rng.random() < 0.5 else -1
        if kind == "same_hue" or rng.random() < 0.5:
            changed = drawn[choice](changed, sign * magnitude / 10)
    if changed is not view:
        view[:] = changed


def identity(view: np.ndarray, level: float) -> np.ndarray:
    return view


def autocontrast(view: np.ndarray, level: float) -> np.ndarray:
    """Stretch to the full range by one map for all channels: one for each would change the hue."""
    low, high = int(view.min()), int(view.max())
    if low == high:
        return view
    stretched = np.clip((np.arange(256) - low) * 255 / (high - low), 0, 255).round()
    return _mapped(view, stretched)


def brightness(view: np.ndarray, level: float) -> np.ndarray:
    """Blend with white or black: scaling would clip single channels and turn orange into yellow."""
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
    """Rotate about the centre by up to 30 degrees, counter-clockwise if `level` is positive."""
    angle, middle = math.radians(30 * level), view.shape[1] / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return warp(view, (cos, -sin, middle * (1 - cos + sin), sin, cos, middle * (1 - cos - sin)))


def autocontrast_of_channels(view: np.ndarray, level: float) -> np.ndarray:
    """Stretch each channel to the full range, like PIL's `autocontrast`."""
    return _by_channel(view, _stretch)


def equalize(view: np.ndarray, level: float) -> np.ndarray:
    """Equalise the histogram of each channel, like PIL's `equalize`."""
    return _by_channel(view, _even_out)


def albef_brightness(view: np.ndarray, level: float) -> np.ndarray:
    """ALBEF's brightness: scale all values by 0.1 to 1.9, whatever the sign of `level`."""
    return _mapped(view, np.clip(np.arange(256) * (1.8 * abs(level) + 0.1), 0, 255))


def albef_sharpness(view: np.ndarray, level: float) -> np.ndarray:
    """ALBEF's sharpness: a factor of 0.1 to 1.9, whatever the sign of `level`."""
    return sharpness(view, 2 * abs(level) - 1)


def warp(view: np.ndarray, matrix: Matrix) -> np.ndarray:
    """The image transformed by `matrix`, with bilinear interpolation."""
    if native_is_missing:
        image = _to_image(view)
        fill = (GREY, GREY, GREY)
        return _to_array(
            image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)
        )
    out = np.empty_like(view)
    _native.warp(view, view.shape[1], matrix, out)
    return out


def _by_channel(view: np.ndarray, table_of: Callable[[np.ndarray], np.ndarray | None]) -> np.ndarray:
    """Map each channel through the table made from its histogram; None leaves the channel as it is."""
    out = np.empty_like(view)
    for channel, changed in zip(view, out, strict=True):
        table = table_of(np.bincount(channel.ravel(), minlength=256))
        changed[:] = channel if table is None else _mapped(channel, table)
    return out


def _stretch(counts: np.ndarray) -> np.ndarray | None:
    low, high = np.flatnonzero(counts)[[0, -1]].tolist()
    if low == high:
        return None
    scale = 255 / (high - low)
    return np.clip((np.arange(256) * scale - low * scale).astype(np.int64), 0, 255)


def _even_out(counts: np.ndarray) -> np.ndarray | None:
    found = counts[counts > 0]
    step = int(found[:-1].sum()) // 255
    if step == 0:
        return None
    below = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.clip((below + step // 2) // step, 0, 255)


def _mapped(view: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each level replaced by its entry in the table; `bytes.translate` is several times faster than numpy indexing."""
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
"""Each takes uint8 [3, size, size] and a level from -1 to 1; the limits are ALBEF's, shifts scaled to the image's size.

They return a new array, or the one they were given, which they never change.
"""

ALBEF_OPERATIONS = (
    identity,
    autocontrast_of_channels,
    equalize,
    albef_brightness,
    albef_sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
)
"""The operations of ALBEF's pretraining and fine-tuning (its `RandomAugment(2, 7)`), with the same signature."""
