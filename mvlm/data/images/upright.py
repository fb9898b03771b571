"""Turns an image opened by Pillow into what the model sees: upright, in RGB, resized.

Needs only Pillow and numpy, so that it can ship with an exported model.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF's tag

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's number; Pillow's own `exif_transpose` rewrites all of the EXIF, and fails when it cannot."""

_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Keys of `Image.info` that may hold the orientation."""

GAP = 3
"""Before filtering, an image is shrunk by a cruder, faster method to no less than this many times the size wanted."""


def upright(image: Image.Image) -> Image.Image:
    """Convert to RGB: upright by its EXIF orientation, transparency on white, more than 8 bits scaled to 8."""
    image = eight_bits(turned(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def turned(image: Image.Image) -> Image.Image:
    """Turn upright by the EXIF orientation, which is then removed, so that the image is not turned again."""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    image = image.transpose(turn)
    image.info = {name: value for name, value in image.info.items() if name not in _EXIF}
    return image


def orientation(image: Image.Image) -> int:
    """EXIF's number; 1, upright, if it cannot be read, as viewers assume: the pixels are sound anyway."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's reader raises nearly anything on damaged bytes
        return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """Reduce grey of more than 8 bits to 8, where Pillow would clip it at 255; other images stay as they are.

    Of 16 bits the upper 8 are kept. 32-bit integers and floats do not define a white: they are stretched, so that the
    smallest value is black and the largest white.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image, np.float32)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    share = (values - low) / max(high - low, np.finfo(np.float32).tiny)
    return Image.fromarray((255 * np.nan_to_num(share).clip(0, 1)).round().astype(np.uint8))


def resized(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """The part of an image in `box` (left, top, right, bottom; None: all of it), as a square of `size` pixels."""
    return image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=GAP)
