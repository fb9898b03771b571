"""Encoded images, hostile until they are decoded: in full, once, with a decoder's warnings taken for errors."""

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
    colour: Image.Image | None = None  # where it was asked for


def decode(data: bytes, colour_beyond: int | None = None) -> DecodedImage:
    """Decode an encoded image in full, the first frame of several.

    Of a JPEG every coefficient is decoded, but only the mean brightness of each block of 8 x 8 turned into a pixel: all
    damage shows before that. `colour` is given as well where a side exceeds `colour_beyond` pixels.

    Raises:
        BadImage: the bytes are no image of the formats taken, are cut short or damaged, or ask for too much.
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
    """By libjpeg-turbo itself, because Pillow hides libjpeg's warnings, which is how damaged data are announced."""
    try:
        return simplejpeg.decode_jpeg(data, mode, strict=True, **size).squeeze(2 if mode == "GRAY" else ())
    except (ValueError, MemoryError) as error:
        raise BadImage("image is damaged", str(error)) from None


def _check_jpeg(data: bytes) -> None:
    """Have libjpeg warn of damage, at the cost of no more pixels than it must make: as few as it can scale down to."""
    _jpeg_pixels(data, "GRAY", min_width=1, min_height=1, min_factor=1)


def _jpeg_colour(data: bytes) -> Image.Image:
    """With the profile and orientation of its header, as Pillow gives them."""
    with opened(data) as header:
        if header.mode == "CMYK":
            _check_jpeg(data)  # whose pixels are Pillow's, which alone knows the ways in which inks are inverted
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
    """The image encoded anew with `longest_side` pixels on its longest side, and its width and height.

    It is upright by its EXIF orientation and bears no metadata but a colour profile. What has transparency becomes
    a PNG, all else a JPEG of that quality.
    """
    pixels = _eight_bits(turned(image))
    scale = longest_side / max(pixels.size)
    size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    small = pixels.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)  # as views are resized in training
    # A profile of other channels, such as a CMYK one, would be wrong of the converted pixels.
    profile = image.info.get("icc_profile") if image.mode in ("L", "RGB", "RGBA") else None
    buffer = io.BytesIO()
    if small.mode == "RGBA":
        small.save(buffer, "PNG", icc_profile=profile)
    else:
        small.save(buffer, "JPEG", quality=quality, icc_profile=profile)
    return buffer.getvalue(), *size


def _eight_bits(image: Image.Image) -> Image.Image:
    """As RGBA where there is transparency, else as L or RGB, with the grey of training."""
    image = eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
