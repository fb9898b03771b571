"""Images that a decoder would choke on, or worse."""

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
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
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


def test_the_first_frame_of_an_animation_is_enough() -> None:
    frames = [Image.new("RGB", (9, 5), colour) for colour in ("red", "blue")]
    assert decoded_size(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (9, 5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_usual_pixel_type_is_taken(mode: str) -> None:
    assert decoded_size(encoded(Image.new(mode, (6, 4)), "JPEG" if mode == "CMYK" else "PNG")) == (6, 4)


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8\xff"]
)
def test_what_is_no_raster_image_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decoded_size(data)


def jpeg(**how: object) -> bytes:
    rows = np.random.default_rng(7).normal(0, 20, (61, 83, 3)).cumsum(0) % 256
    return encoded(Image.fromarray(rows.astype(np.uint8)), quality=88, **how)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_is_damaged_by_its_small_picture_exactly_where_it_is_by_the_whole(how: dict[str, object]) -> None:
    data, random = jpeg(**how), np.random.default_rng(11)
    first = data.index(b"\xff\xda")  # of what the pixels are in; tables before it may make another sound image
    counts = Counter[bool]()
    for place in random.integers(first, len(data), 250).tolist():
        flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        for damaged in (flipped, data[:place]):
            expected = is_whole(damaged)
            counts[expected] += 1
            assert passes(damaged) == expected, f"byte {place}"
    assert min(counts[True], counts[False]) > 10


def is_whole(jpeg: bytes) -> bool:
    """Whether it decodes in colour and in its full size without a warning."""
    try:
        return simplejpeg.decode_jpeg(jpeg, "RGB", strict=True).size > 0
    except ValueError:
        return False


def passes(jpeg: bytes) -> bool:
    try:
        return decoded_size(jpeg) == (83, 61)
    except BadImage:
        return False


def exif_of(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF of a tag, a type and four bytes each."""
    content = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + content + bytes(4)


ON_ITS_SIDE = (0x0112, 3, b"\x06\0\0\0")
FLOAT_FOR_TEXT = (0x010E, 11, struct.pack("<f", 1.5))  # which Pillow reads and cannot write


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "size"),
    [
        (b"Exif\0\0no TIFF at all", (30, 20)),
        (b"Exif\0\0II*\0", (30, 20)),
        (exif_of((0x0112, 2, b"six\0")), (30, 20)),
        (exif_of(FLOAT_FOR_TEXT, ON_ITS_SIDE), (20, 30)),
    ],
)
def test_exif_that_cannot_be_read_harms_no_picture(kind: str, exif: bytes, size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", (30, 20), "red"), kind, exif=exif, dpi=(72, 72))
    assert decoded_size(data) == (30, 20)
    assert load_image(data).size == size
    colour = decode(data, 8).colour
    assert colour is not None
    small, *_ = shrunk(colour, 15, 90)
    assert load_image(small).size == tuple(side // 2 for side in size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_was_turned_is_not_turned_again(kind: str) -> None:
    shown = upright(load_image(encoded(Image.new("RGB", (30, 20), "red"), kind, exif=exif_of(ON_ITS_SIDE))))
    assert shown.size == load_image(encoded(shown, "PNG")).size == (20, 30)
