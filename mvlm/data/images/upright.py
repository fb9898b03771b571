"""What Pillow opened as the model is shown it: upright, in RGB, resized.

Of Pillow and numpy alone, so that it may travel with an exported model.
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
"""By EXIF's number: not by Pillow's own function, which writes all of the EXIF anew and fails where it cannot."""

_EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where Pillow keeps what says the orientation."""

GAP = 3
"""Before the filter, a picture is shrunk by a cruder and faster way to no less than this many times the size wanted."""


def upright(image: Image.Image) -> Image.Image:
    """To RGB: upright by its EXIF orientation, transparency on white, more than 8 bits scaled to 8."""
    image = eight_bits(turned(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def turned(image: Image.Image) -> Image.Image:
    """Upright by its EXIF orientation, without which it then is, lest it be turned again."""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    image = image.transpose(turn)
    image.info = {name: value for name, value in image.info.items() if name not in _EXIF}
    return image


def orientation(image: Image.Image) -> int:
    """By EXIF; 1, upright, where that cannot be read, as viewers have it: the pixels are sound all the same."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's reader raises nearly anything on damaged bytes
        return 1


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits in 8, where Pillow would clip it at 255; every other image as it is.

    Of 16 bits they are the upper ones. Whole numbers of 32 bits and floats have no white of their own: they are
    stretched, so that the least is black and the greatest white.
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
    """The part of an image in `box` (left, top, right, bottom), all of it where None, as a square of `size` pixels."""
    return image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=GAP)
