"""Whether a record is fit to train on: captions cleaned, the image decoded in full once."""

from __future__ import annotations

import io
import struct
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from data_tools.record import Dropped, Record

MAX_PIXELS = 89_478_485
"""Pillow's own limit of a plausible image; what decodes to more is taken for a decompression bomb."""

MAX_NAME = 1024
"""Characters of an id or source."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats decoded; Pillow's others are left out, since some of them start programs or follow references."""


class BadImage(Exception):
    """An image that does not decode: `reason` is counted, `detail` explains."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Checked:
    """What the check of a good record found; the image itself need not travel back from a worker."""

    captions: tuple[str, ...]
    caption_drops: Counter[str]
    width: int
    height: int
    crc32: int


def check_record(item: Record | Dropped) -> Checked | Dropped:
    """Clean the captions and decode the image of a record; pass a dropped one on."""
    if isinstance(item, Dropped):
        return item
    if not item.key.strip() or not _is_name(item.key):
        return Dropped(item.key[:80], "id is not plain text", item.where)
    if not _is_name(item.source):
        return Dropped(item.key, "source is not plain text", item.where)
    captions, caption_drops = clean_captions(item.captions)
    if not captions:
        return Dropped(item.key, "no caption", item.where, ", ".join(sorted(caption_drops)))
    try:
        width, height = decoded_size(item.image)
    except BadImage as bad:
        return Dropped(item.key, bad.reason, item.where, bad.detail)
    return Checked(captions, caption_drops, width, height, zlib.crc32(item.image))


def _is_name(text: str) -> bool:
    """Short, and without control characters and lone surrogates."""
    return len(text) <= MAX_NAME and not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def clean_captions(raw: Iterable[object]) -> tuple[tuple[str, ...], Counter[str]]:
    """The usable captions, and how many of the others were dropped for which reason.

    Bytes must be UTF-8. Control characters, line breaks and runs of white space become one space; ends are stripped.
    """
    kept: list[str] = []
    drops: Counter[str] = Counter()
    for caption in raw:
        text, reason = _clean(caption)
        if reason:
            drops[reason] += 1
        else:
            kept.append(text)
    return tuple(kept), drops


def _clean(caption: object) -> tuple[str, str]:
    """The cleaned caption, or why there is none."""
    if isinstance(caption, bytes):
        try:
            caption = caption.decode("utf-8")
        except UnicodeDecodeError:
            return "", "caption is not UTF-8"
    if not isinstance(caption, str):
        return "", "caption is not text"
    # A lone surrogate is legal in JSON but not in UTF-8, which Arrow strings are.
    if any("\ud800" <= character <= "\udfff" for character in caption):
        return "", "caption is not UTF-8"
    spaced = "".join(" " if unicodedata.category(c) == "Cc" else c for c in caption)
    text = " ".join(spaced.split())
    return text, "" if text else "caption is empty"


def decoded_size(data: bytes) -> tuple[int, int]:
    """Decode an encoded image in full, the first frame of several.

    Returns:
        Width and height in pixels, before any EXIF rotation.

    Raises:
        BadImage: the bytes are no image of `FORMATS`, are cut short or damaged, or decode to more than `MAX_PIXELS`.
    """
    if not data:
        raise BadImage("image is empty", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise BadImage("image is too large", f"{width} x {height} pixels")
                image.load()
                if image.mode not in ("RGB", "L"):
                    image.convert("RGB")
        except Image.DecompressionBombError as error:
            raise BadImage("image is too large", str(error)) from None
        except Image.UnidentifiedImageError:
            raise BadImage("not an image", f"begins with {data[:16]!r}") from None
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error) as error:
            raise BadImage("image is damaged", f"{type(error).__name__}: {error}") from None
        except (zlib.error, OverflowError, MemoryError, AttributeError, RuntimeError) as error:
            raise BadImage("image is damaged", f"{type(error).__name__}: {error}") from None
    return width, height
