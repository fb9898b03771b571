"""Unusual images are accepted; images that would exhaust memory, or are damaged, are refused."""

from __future__ import annotations

import struct
from collections import Counter

import numpy as np
import pytest
import simplejpeg
from made import photo
from PIL import Image

from data_tools.image import decode, decoded_size, shrunk
from mvlm.data.images.decode import load_image
from mvlm.data.images.encoded import BadImage
from mvlm.data.images.upright import upright
from tests.pictures import encoded, png


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused(side: int) -> None:
    data = png(side, side, depth=1, colours=0, pixels=bytes(side * (side // 8 + 1)))
    assert len(data) < 100_000
    with pytest.raises(BadImage, match="image is too large"):
        decoded_size(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    data = photo(3, kind, (40, 30))
    assert decoded_size(data) == (40, 30)
    with pytest.raises(BadImage):
        decoded_size(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_common_pixel_type_is_accepted(mode: str) -> None:
    assert decoded_size(encoded(Image.new(mode, (6, 4)), "JPEG" if mode == "CMYK" else "PNG")) == (6, 4)


def jpeg(**options: object) -> bytes:
    """A JPEG of a random texture, 83 pixels wide and 61 high."""
    rows = np.random.default_rng(7).normal(0, 20, (61, 83, 3)).cumsum(0) % 256
    return encoded(Image.fromarray(rows.astype(np.uint8)), quality=88, **options)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str
)
def test_decoding_a_jpeg_at_an_eighth_of_its_size_finds_the_same_damage_as_in_full(
    options: dict[str, object],
) -> None:
    data, random = jpeg(**options), np.random.default_rng(11)
    first = data.index(b"\xff\xda")  # the scan: a change to the tables before it may give another sound image
    counts = Counter[bool]()  # of sound and of damaged files
    for place in random.integers(first, len(data), 250).tolist():
        flipped = data[:place] + bytes([data[place] ^ (1 << (place % 8))]) + data[place + 1 :]
        for changed in (flipped, data[:place]):
            expected = decodes_in_full(changed)
            counts[expected] += 1
            assert is_accepted(changed) == expected, f"byte {place}"
    assert min(counts[True], counts[False]) > 10


def decodes_in_full(jpeg: bytes) -> bool:
    """Whether all pixels decode in colour without a warning of libjpeg."""
    try:
        return simplejpeg.decode_jpeg(jpeg, "RGB", strict=True).size > 0
    except ValueError:
        return False


def is_accepted(jpeg: bytes) -> bool:
    try:
        return decoded_size(jpeg) == (83, 61)
    except BadImage:
        return False


def exif_of(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF whose entries are a tag, a type and four bytes of value each."""
    content = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + content + bytes(4)


QUARTER_TURN = (0x0112, 3, b"\x06\0\0\0")
FLOAT_FOR_TEXT = (0x010E, 11, struct.pack("<f", 1.5))  # Pillow reads it but cannot write it


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (b"Exif\0\0no TIFF at all", (30, 20)),
        (b"Exif\0\0II*\0", (30, 20)),
        (exif_of((0x0112, 2, b"six\0")), (30, 20)),
        (exif_of(FLOAT_FOR_TEXT, QUARTER_TURN), (20, 30)),
    ],
)
def test_malformed_exif_does_not_prevent_decoding_and_shrinking(kind: str, exif: bytes, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", (30, 20), "red"), kind, exif=exif, dpi=(72, 72))
    assert decoded_size(data) == (30, 20)
    assert load_image(data).size == size
    colour = decode(data, 8).colour
    assert colour is not None
    small, *_ = shrunk(colour, 15, 90)
    assert load_image(small).size == tuple(side // 2 for side in size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_turned_upright_only_once(kind: str) -> None:
    shown = upright(load_image(encoded(Image.new("RGB", (30, 20), "red"), kind, exif=exif_of(QUARTER_TURN))))
    assert shown.size == load_image(encoded(shown, "PNG")).size == (20, 30)
