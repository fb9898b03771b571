"""What Pillow opened as the model is shown it: upright, in RGB, resized.

Of Pillow and numpy alone, so that it may travel with an exported model.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

GAP = 3
"""Before the filter, a picture is shrunk by a cruder and faster way to no less than this many times the size wanted."""


def upright(image: Image.Image) -> Image.Image:
    """To RGB: upright by its EXIF orientation, transparency on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it.
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def resized(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """The part of an image in `box` (left, top, right, bottom), all of it where None, as a square of `size` pixels."""
    return image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=GAP)
