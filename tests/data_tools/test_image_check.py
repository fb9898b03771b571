"""Images that a decoder would choke on, or worse."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from made import photo
from PIL import Image

from data_tools.image import decoded_size
from mvlm.data.images.encoded import BadImage


def bomb(side: int) -> bytes:
    """A small PNG of `side` x `side` one-bit black pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    data = bomb(side)
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
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decoded_size(buffer.getvalue()) == (9, 5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_usual_pixel_type_is_taken(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (6, 4)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert decoded_size(buffer.getvalue()) == (6, 4)


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8\xff"]
)
def test_what_is_no_raster_image_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decoded_size(data)
