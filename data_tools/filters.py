"""Whether a record is fit to train on: cleans texts, and decodes each image once to judge, hash and shrink it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zlib_ng import zlib_ng

from mvlm.data.images.encoded import BadImage

from .image import decode, shrunk
from .perceptual_hash import perceptual_hash_of
from .record import Dropped, Record

MAX_NAME = 1024
"""Characters of an id or source."""

MAX_TEXT = 10_000
"""Characters of a caption or another text: anything longer is not a caption but a page gone astray."""

TOO_SMALL = "image is too small"
TOO_ELONGATED = "image is too elongated"

MAY_BE_EMPTY = {"question_type", "group", "swapped", "answers"}

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
INVISIBLE = re.compile(
    "[\\s\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
"""White space, what Unicode calls ignorable by default (joiners, marks of direction, …), and Braille's blank."""

SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Filters:
    """What is asked of a record beyond being sound, and what is computed while its image is decoded."""

    longest_side: int = 0  # pixels; a longer image is shrunk to it and re-encoded. 0: none is
    quality: int = 90  # of re-encoded JPEGs
    min_size: int = 0  # pixels of the shorter side
    max_aspect: float = 0.0  # longer by shorter side; 0: any
    caption_words: tuple[int, int] | None = None  # fewest and most
    exact_hash: bool = False  # SHA-256 of the bytes that are stored
    look: bool = False  # what `data_tools.perceptual_hash` compares


@dataclass(frozen=True)
class CheckedImage:
    """What the check of one image found. `encoded` is empty if the bytes stay as they came."""

    width: int
    height: int
    crc32: int
    encoded: bytes = b""
    look: bytes = b""


@dataclass(frozen=True)
class Checked:
    """What the check of a good record found; an image itself travels back from a worker only if it changed."""

    captions: tuple[str, ...]
    caption_drops: Counter[str]
    pictures: tuple[CheckedImage, ...]  # of `image`, and of `image2` if there is one
    columns: Mapping[str, Any] = field(default_factory=dict)  # the record's own, texts cleaned
    exact: bytes = b""


SOUND = Filters()


class _Unfit(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def check_record(item: Record | Dropped, filters: Filters = SOUND) -> Checked | Dropped:
    """Clean the texts and decode the images of a record; a dropped one is returned as it is."""
    if isinstance(item, Dropped):
        return item
    if reason := _unfit_id(item.key):
        return Dropped(item.key[:80], reason, item.where, source=item.source[:80])
    try:
        return _checked(item, filters)
    except (_Unfit, BadImage) as bad:
        return Dropped(item.key, bad.reason, item.where, bad.detail, item.source[:80])


def exact_hash(images: Sequence[bytes]) -> bytes:
    """16 bytes of the SHA-256 of a record's images as they are stored."""
    return hashlib.sha256(b"".join(images)).digest()[:16]


def _checked(item: Record, filters: Filters) -> Checked:
    if not _is_name(item.source):
        raise _Unfit("source is not plain text")
    captions, caption_drops = clean_captions(item.captions, filters.caption_words)
    if not captions and not item.columns:
        raise _Unfit(no_caption(caption_drops), ", ".join(sorted(caption_drops)))
    columns = {name: _clean_column(name, value) for name, value in item.columns.items()}
    images = [item.image, item.image2] if item.image2 else [item.image]
    pictures = tuple(_picture(image, filters) for image in images)
    stored = [picture.encoded or image for picture, image in zip(pictures, images, strict=True)]
    exact = exact_hash(stored) if filters.exact_hash else b""
    return Checked(captions, caption_drops, pictures, columns, exact)


def _picture(data: bytes, filters: Filters) -> CheckedImage:
    image = decode(data, 0 if filters.look else filters.longest_side or None)
    short, long = sorted((image.width, image.height))
    if short < filters.min_size:
        raise _Unfit(TOO_SMALL, f"{image.width} x {image.height} pixels")
    if filters.max_aspect and long > filters.max_aspect * short:
        raise _Unfit(TOO_ELONGATED, f"{image.width} x {image.height} pixels")
    look = perceptual_hash_of(image.colour) if filters.look and image.colour else b""
    if image.colour and 0 < filters.longest_side < long:
        encoded, width, height = shrunk(image.colour, filters.longest_side, filters.quality)
        return CheckedImage(width, height, zlib_ng.crc32(encoded), encoded, look)
    return CheckedImage(image.width, image.height, zlib_ng.crc32(data), b"", look)


def _unfit_id(key: str) -> str:
    """Why a record cannot have this id; "" if it can."""
    if key.strip() and _is_name(key):
        return ""
    if SURROGATE.search(key):
        return "id is not UTF-8"
    return "id is not plain text" if key.strip() else "no id"


def _is_name(text: str) -> bool:
    """Short, and without control characters and lone surrogates."""
    return len(text) <= MAX_NAME and (_is_plain(text) or not (CONTROL.search(text) or SURROGATE.search(text)))


def _is_plain(text: str) -> bool:
    """Whether it is printable ASCII or empty, as most texts are: then none of the patterns can match."""
    return text.isascii() and text.isprintable()


def _clean_column(name: str, value: object) -> object:
    if isinstance(value, list | tuple):
        return [_clean_column(name, one) for one in value]
    if not isinstance(value, str | bytes):
        return value
    text, reason = _clean(value)
    if reason and not (reason == "is empty" and name in MAY_BE_EMPTY):
        raise _Unfit(f"{name} {reason}")
    return text


def clean_captions(raw: Iterable[object], words: tuple[int, int] | None = None) -> tuple[tuple[str, ...], Counter[str]]:
    """The usable captions, and how many of the others were dropped for which reason.

    Bytes must be UTF-8. Control characters, line breaks and runs of white space become one space; ends are stripped;
    a text of invisible characters is empty. `words` are the fewest and most a caption may have.
    """
    kept: list[str] = []
    drops: Counter[str] = Counter()
    for caption in raw:
        text, reason = _clean(caption)
        if not reason and words:
            count = len(text.split())
            reason = "has too few words" if count < words[0] else "has too many words" if count > words[1] else ""
        if reason:
            drops[f"caption {reason}"] += 1
        else:
            kept.append(text)
    return tuple(kept), drops


def no_caption(caption_drops: Counter[str]) -> str:
    """Why a record has no caption left: what was wrong with all of them, if it was the same."""
    return next(iter(caption_drops)) if len(caption_drops) == 1 else "no caption"


def _clean(text: object) -> tuple[str, str]:
    """The cleaned text, or why there is none."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            return "", "is not UTF-8"
    if not isinstance(text, str):
        return "", "is not text"
    if len(text) > MAX_TEXT:
        return "", "is too long"
    if _is_plain(text):
        text = " ".join(text.split())
        return (text, "") if text else ("", "is empty")
    # A lone surrogate is legal in JSON but not in UTF-8, which Arrow strings are.
    if SURROGATE.search(text):
        return "", "is not UTF-8"
    text = " ".join(CONTROL.sub(" ", text).split())
    return (text, "") if text and not INVISIBLE.fullmatch(text) else ("", "is empty")
