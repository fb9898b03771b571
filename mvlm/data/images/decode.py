"""Decoders: from encoded bytes to a resized part of an image, by the fastest library available.

A JPEG is decoded by the first of `DECODERS` that works on this machine. All of them show the same part at the same size
through the same filter, an antialiased bicubic; `benchmarks/data/README.md` has the differences between their pixels.
Everything else (other formats, CMYK, pictures stored on their side) goes through Pillow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import simplejpeg
from PIL import Image

from mvlm.data.images.encoded import JPEG_START, BadImage, check_scans, damaged, open_image
from mvlm.data.images.upright import GAP, orientation, resized, upright
from mvlm.errors import UserError

native_is_missing = ""
"""Why the extension cannot be used; empty if it can."""

try:
    from mvlm.data.images import _native
except ImportError as error:
    native_is_missing = f"installing mvlm builds it where there are a C compiler and libjpeg-turbo's headers; {error}"

FORCE = "MVLM_DECODER"
"""The environment variable that names the decoder to use: one of `DECODERS`, or "auto", the default."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels of the upright image."""


class Picture(Protocol):
    """An encoded image of known size, parts of which can be shown; width and height are in pixels."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...

    def show(self, box: Box, size: int, flip: bool, out: np.ndarray) -> None:
        """Write the part in `box`, resized and perhaps mirrored, to `out`: uint8 [3, size, size], contiguous.

        Raises:
            BadImage: the data read for it is damaged.
        """


def open_picture(data: bytes | memoryview) -> Picture:
    """An encoded image, upright and in RGB, which is decoded only as far as it is shown.

    So damage is found here or when a part is shown, and goes unnoticed outside the parts shown: a corpus is checked in
    full when it is sharded.

    Raises:
        BadImage: truncated, damaged, too large or of an unknown format.
        UserError: the decoder that `MVLM_DECODER` names is not available.
    """
    if data[:3] != JPEG_START:
        return Decoded.open(data)
    check_scans(data)
    return _OPENERS[chosen().name](data)


def load_image(data: bytes | memoryview) -> Image.Image:
    """Decode in full, to RGB: upright by its EXIF orientation, transparency on white, more than 8 bits scaled to 8, and
    only the first of several frames or pages.

    Raises:
        BadImage: truncated, damaged, too large or of an unknown format.
    """
    try:
        image = open_image(data)
        image.load()
        return upright(image)
    except BadImage:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        raise damaged(error) from error


@dataclass(frozen=True)
class Decoded:
    """An RGB image that Pillow has decoded."""

    image: Image.Image

    @classmethod
    def open(cls, data: bytes | memoryview) -> Decoded:
        return cls(load_image(data))

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    def show(self, box: Box, size: int, flip: bool, out: np.ndarray) -> None:
        view = resized(self.image, size, box)
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out[:] = np.asarray(view).transpose(2, 0, 1)


@dataclass(frozen=True)
class NativeJpeg:
    """A JPEG that our own extension decodes, only as far as a part reaches, without holding the GIL."""

    data: bytes | memoryview
    width: int
    height: int

    @classmethod
    def open(cls, data: bytes | memoryview) -> Picture:
        try:
            width, height, plain = _native.header(data)
        except ValueError:
            # Pillow judges a header that libjpeg warns of, as it does when a corpus is sharded.
            return Decoded.open(data)
        return cls(data, width, height) if plain else Decoded.open(data)

    def show(self, box: Box, size: int, flip: bool, out: np.ndarray) -> None:
        try:
            taken = _native.view(self.data, box, shrink(box, size), flip, size, out)
        except ValueError as error:
            raise BadImage("image is damaged", str(error)) from None
        if not taken:
            Decoded.open(self.data).show(box, size, flip, out)


@dataclass(frozen=True)
class SimpleJpeg:
    """A JPEG that simplejpeg decodes and Pillow resizes."""

    data: bytes | memoryview
    width: int
    height: int
    mode: str

    @classmethod
    def open(cls, data: bytes | memoryview) -> Picture:
        try:
            simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return Decoded.open(data)  # as in `NativeJpeg`
        header = open_image(data)
        if orientation(header) != 1 or header.mode not in ("RGB", "L"):
            return Decoded.open(data)
        return cls(data, header.width, header.height, header.mode)

    def show(self, box: Box, size: int, flip: bool, out: np.ndarray) -> None:
        by = shrink(box, size)
        try:
            pixels = simplejpeg.decode_jpeg(
                self.data,
                "GRAY" if self.mode == "L" else "RGB",
                min_width=-(-self.width // by),
                min_height=-(-self.height // by),
                strict=True,
            )
        except ValueError as error:
            raise BadImage("image is damaged", str(error)) from None
        image = Image.fromarray(pixels.squeeze(2) if self.mode == "L" else pixels)
        part = (box[0] / by, box[1] / by, box[2] / by, box[3] / by)
        view = resized(image, size, part).convert("RGB")
        out[:] = np.asarray(view).transpose(2, 0, 1)[:, :, :: -1 if flip else 1]


def shrink(box: Box, size: int) -> int:
    """The greatest of 1, 2, 4 and 8 that a JPEG can be shrunk by with `GAP` pixels of `box` left for each of `size`."""
    shorter = min(box[2] - box[0], box[3] - box[1])
    return next((by for by in (8, 4, 2) if shorter >= by * GAP * size), 1)


@dataclass(frozen=True)
class Choice:
    """The decoder of JPEGs, and why each one preferred to it was passed over."""

    name: str
    passed_over: dict[str, str]


def chosen() -> Choice:
    """The decoder of JPEGs on this machine.

    Raises:
        UserError: `MVLM_DECODER` names one that is not available.
    """
    return _choose(os.environ.get(FORCE, "auto"))


@cache
def _choose(asked: str) -> Choice:
    if asked not in ("auto", *DECODERS):
        raise UserError(f'{FORCE}={asked} is not a decoder: set it to "auto" or one of {", ".join(DECODERS)}.')
    passed_over: dict[str, str] = {}
    for name, why_not in DECODERS.items():
        reason = why_not()
        if asked == name and reason is not None:
            raise UserError(f"{FORCE}={asked} asks for a decoder that does not work here ({reason}): unset it.")
        if reason is None and asked in ("auto", name):
            return Choice(name, passed_over)
        passed_over[name] = reason or f"{FORCE}={asked} asks for another"
    raise AssertionError("Pillow is always there")


DECODERS: dict[str, Callable[[], str | None]] = {
    "native": lambda: native_is_missing or None,
    "simplejpeg": lambda: None,
    "pillow": lambda: None,
}
"""In order of preference, each with a function that says why it cannot be used; None if it can."""

_OPENERS: dict[str, Callable[[bytes | memoryview], Picture]] = {
    "native": NativeJpeg.open,
    "simplejpeg": SimpleJpeg.open,
    "pillow": Decoded.open,
}
