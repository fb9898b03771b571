"""Encoded images, hostile until they are decoded: in full, once, with a decoder's warnings taken for errors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from mvlm.data.encoded import JPEG_START, BadImage, check_scans, check_size, damaged, open_image
from mvlm.data.upright import ORIENTATION, eight_bits


@dataclass(frozen=True)
class Decoded:
    """Width and height in pixels, before any EXIF rotation, and the brightness uint8 [height, width]."""

    width: int
    height: int
    luma: np.ndarray
    colour: Image.Image | None = None  # where it is to be shrunk


def decode(data: bytes, longest_side: int = 0) -> Decoded:
    """Decode an encoded image in full, the first frame of several.

    Of a JPEG every coefficient is decoded, but only the brightness turned into pixels: all damage shows before that.
    `colour` is given as well where a side exceeds `longest_side`, unless that is 0.

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
            colour = _jpeg_colour(data) if 0 < longest_side < max(width, height) else None
            return Decoded(width, height, _brightness(colour) if colour else _jpeg_pixels(data, "GRAY"), colour)
    with opened(data) as image:
        image.load()
        colour = image.copy() if 0 < longest_side < max(image.size) else None
        return Decoded(*image.size, _brightness(image), colour)


def _jpeg_pixels(data: bytes, mode: str) -> np.ndarray:
    """By libjpeg-turbo itself, because Pillow hides libjpeg's warnings, which is how damaged data are announced."""
    try:
        return simplejpeg.decode_jpeg(data, mode, strict=True).squeeze(2 if mode == "GRAY" else ())
    except (ValueError, MemoryError) as error:
        raise BadImage("image is damaged", str(error)) from None


def _jpeg_colour(data: bytes) -> Image.Image:
    """With the profile and orientation of its header, as Pillow gives them."""
    with opened(data) as header:
        if header.mode == "CMYK":
            _jpeg_pixels(data, "GRAY")  # for its warnings; only Pillow knows the ways in which inks are inverted
            return header.copy()
        colour = Image.fromarray(_jpeg_pixels(data, "GRAY" if header.mode == "L" else "RGB"))
        colour.info = dict(header.info)
        colour.getexif()[ORIENTATION] = header.getexif().get(ORIENTATION, 1)
        return colour


def _brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image if image.mode == "L" else _eight_bits(image).convert("RGB").convert("L"))


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
    pixels = _eight_bits(ImageOps.exif_transpose(image))
    scale = longest_side / max(pixels.size)
    size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    small = pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
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


def dhash(image: Decoded) -> int:
    """A 64-bit perceptual hash: whether each of 8 x 8 patches is brighter than the next to its left.

    Shrunk and re-encoded copies differ in a few bits, other pictures in about 32; plain ones have hash 0.
    """
    fine = np.asarray(Image.fromarray(image.luma).resize((72, 64), Image.Resampling.BOX), np.float32)
    means = fine.reshape(8, 8, 9, 8).mean((1, 3))
    return int.from_bytes(np.packbits(np.diff(means, axis=1) > 0.5).tobytes(), "big")
