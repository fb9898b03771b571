"""Decoding untrusted images: in full, once, with the decoder's warnings treated as errors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from mvlm.data.images.encoded import JPEG_START, BadImage, check_scans, check_size, damaged, open_image
from mvlm.data.images.upright import ORIENTATION, eight_bits, orientation, turned


@dataclass(frozen=True)
class DecodedImage:
    """Width and height in pixels, before any EXIF rotation."""

    width: int
    height: int
    colour: Image.Image | None = None  # if it was asked for


def decode(data: bytes, colour_beyond: int | None = None) -> DecodedImage:
    """Decode an encoded image in full; of several frames, the first.

    All coefficients of a JPEG are decoded, but only the mean brightness of each 8 x 8 block becomes a pixel: damage
    shows before that. `colour` is set if a side exceeds `colour_beyond` pixels.

    Raises:
        BadImage: the bytes are not an image of an accepted format, are cut short or damaged, or exceed a limit.
    """
    if not data:
        raise BadImage("image is empty", "0 bytes")
    if data.startswith(JPEG_START):
        check_scans(data)
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            pass  # a kind of JPEG that simplejpeg does not know: Pillow may
        else:
            check_size(width, height, 4 if colours in ("CMYK", "YCCK") else 3)
            if colour_beyond is not None and max(width, height) > colour_beyond:
                return DecodedImage(width, height, _jpeg_colour(data))
            _check_jpeg(data)
            return DecodedImage(width, height)
    with opened(data) as image:
        image.load()
        wanted = colour_beyond is not None and max(image.size) > colour_beyond
        return DecodedImage(*image.size, image.copy() if wanted else None)


def _jpeg_pixels(data: bytes, mode: str, **size: float) -> np.ndarray:
    """Decode with libjpeg-turbo itself: it reports damage by warnings, which Pillow hides."""
    try:
        return simplejpeg.decode_jpeg(data, mode, strict=True, **size).squeeze(2 if mode == "GRAY" else ())
    except (ValueError, MemoryError) as error:
        raise BadImage("image is damaged", str(error)) from None


def _check_jpeg(data: bytes) -> None:
    """Check for damage while making as few pixels as libjpeg can scale down to."""
    _jpeg_pixels(data, "GRAY", min_width=1, min_height=1, min_factor=1)


def _jpeg_colour(data: bytes) -> Image.Image:
    """The pixels in colour, with the profile and orientation that Pillow reads from the header."""
    with opened(data) as header:
        if header.mode == "CMYK":
            _check_jpeg(data)  # the pixels are Pillow's, which alone knows the ways in which inks are inverted
            return header.copy()
        colour = Image.fromarray(_jpeg_pixels(data, "GRAY" if header.mode == "L" else "RGB"))
        colour.info = {name: value for name, value in header.info.items() if name != "exif"}
        colour.getexif()[ORIENTATION] = orientation(header)
        return colour


def decoded_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of an image that decodes in full; raises as `decode` does."""
    image = decode(data)
    return image.width, image.height


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Pillow's image of the bytes; whatever goes wrong inside the block is a `BadImage`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(data) as image:
                yield image
        except BadImage:
            raise
        except Exception as error:  # as in `open_image`
            raise damaged(error) from None


def shrunk(image: Image.Image, longest_side: int, quality: int) -> tuple[bytes, int, int]:
    """The image re-encoded with `longest_side` pixels on its longest side, and its width and height.

    It is turned upright by its EXIF orientation and keeps no metadata but a colour profile. An image with transparency
    becomes a PNG, any other a JPEG of that quality.
    """
    pixels = _eight_bits(turned(image))
    scale = longest_side / max(pixels.size)
    size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    small = pixels.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)  # as views are resized in training
    # A profile of other channels, such as a CMYK one, would be wrong for the converted pixels.
    profile = image.info.get("icc_profile") if image.mode in ("L", "RGB", "RGBA") else None
    buffer = io.BytesIO()
    if small.mode == "RGBA":
        small.save(buffer, "PNG", icc_profile=profile)
    else:
        small.save(buffer, "JPEG", quality=quality, icc_profile=profile)
    return buffer.getvalue(), *size


def _eight_bits(image: Image.Image) -> Image.Image:
    """As RGBA if there is transparency, else as L or RGB, with grey levels as in training."""
    image = eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
