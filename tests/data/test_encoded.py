"""Which images are accepted and how large they may be, alike for every decoder and where shards are made."""

import os
import resource
import struct
import time

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from data_tools.filters import Filters, check_record
from data_tools.image import decode
from data_tools.record import Dropped, Record
from mvlm.data.images.decode import DECODERS, FORCE, load_image, open_picture
from mvlm.data.images.encoded import BYTE_LIMIT, PIXEL_LIMIT, SCAN_LIMIT, BadImage, check_scans, check_size
from mvlm.data.images.upright import eight_bits
from tests.pictures import encoded, png

AVAILABLE = [name for name, why_not in DECODERS.items() if why_not() is None]
DOWN, ACROSS = np.mgrid[:20, :30]
PIXELS = np.stack([DOWN * 12, ACROSS * 8, 255 - DOWN * 5 - ACROSS * 3], 2).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS)
GREY = PIXELS[:, :, 0]


def three_scans(more=0):
    """A JPEG with a scan for each of its three channels, the last of which is repeated `more` times."""
    data = encoded(Image.new("L", (64, 48)), "JPEG")
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    three = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 48, 64, 3) + b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3))
    scans = [data[scan : scan + 5] + bytes([i]) + data[scan + 6 : -2] for i in (1, 2, 3)]
    return data[:frame] + three + data[frame + 13 : scan] + b"".join(scans) + scans[2] * more + data[-2:]


def progressive(more=0, between=b""):
    """A progressive JPEG with `more` additional empty scans, each a few bytes for all its pixels."""
    data = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + (between + data[last:-2]) * (more + 1) + data[-2:]


def webp(side):
    """A WebP of one colour, a few bytes whatever its size."""
    data = bytearray(encoded(Image.new("RGB", (16, 16), (10, 200, 30)), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    return bytes(data)


def webp_canvas(side):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = 2 * (side - 1).to_bytes(3, "little")
    return bytes(data)


def resized_tiff(side, *args):
    data = bytearray(encoded(*args))
    ifd = struct.unpack("<I", data[4:8])[0]
    for entry in range(ifd + 2, ifd + 2 + 12 * struct.unpack("<H", data[ifd : ifd + 2])[0], 12):
        tag, _, count = struct.unpack("<HHI", data[entry : entry + 8])
        if tag in (256, 257):
            data[entry : entry + 12] = struct.pack("<HHII", tag, 4, count, side)
    return bytes(data)


def cmyk_jpeg(side):
    data = bytearray(encoded(Image.new("CMYK", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


LARGE, SCANS = "image is too large", "image has too many scans"
HOSTILE = {
    "progressive": (progressive(2000), SCANS),
    "sequential": (three_scans(2000), SCANS),
    "one scan too many": (three_scans(SCAN_LIMIT - 2), SCANS),
    "tables between": (progressive(200, b"\xff\xfe\x00\x04\xff\xd9"), SCANS),
    "webp": (webp(9400), LARGE),
    "animated webp": (webp_canvas(9400), LARGE),
    "16-bit grey png": (png(9400, 9400, 16, 0), LARGE),
    "16-bit colour png": (png(9400, 9400, 16, 2), LARGE),
    "cmyk jpeg": (cmyk_jpeg(9000), LARGE),
    "float tiff": (resized_tiff(5000, Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), LARGE),
}


def shown_in_training(data, decoder, monkeypatch):
    monkeypatch.setenv(FORCE, decoder)
    picture = open_picture(memoryview(data))
    out = np.empty((3, 16, 16), np.uint8)
    picture.show((0, 0, picture.width, picture.height), 16, False, out)
    return out


@pytest.mark.parametrize("name", HOSTILE)
def test_images_that_need_too_much_are_refused_at_once_with_the_same_reason(name, monkeypatch):
    data, reason = HOSTILE[name]
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for decoder in AVAILABLE:
        with pytest.raises(BadImage) as refused:
            shown_in_training(data, decoder, monkeypatch)
        assert refused.value.reason == reason
    for take in (load_image, decode):
        with pytest.raises(BadImage) as refused:
            take(data)
        assert refused.value.reason == reason
    found = check_record(Record("k", data, ["a caption"]), Filters(longest_side=64))
    assert isinstance(found, Dropped)
    assert found.reason == reason
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_as_many_scans_as_real_images_have_are_accepted(monkeypatch):
    for data in (three_scans(), progressive(), three_scans(SCAN_LIMIT - 3)):
        check_scans(data)
        for decoder in AVAILABLE:
            shown_in_training(data, decoder, monkeypatch)
        decode(data)


def test_markers_outside_of_scans_are_not_counted_as_scans():
    """In a comment, behind the end of the image, and within the only scan of a baseline image."""
    noise = b"\xff\xda\0\2" * 500
    data = encoded(PHOTO, "JPEG", progressive=True)
    comment = b"\xff\xfe" + struct.pack(">H", len(noise) + 2) + noise
    for sound in (data[:2] + comment + data[2:], data + b"\0\2" + noise, encoded(PHOTO, "JPEG") + noise):
        check_scans(sound)
        load_image(sound)


def test_the_limit_is_in_bytes():
    check_size(1, PIXEL_LIMIT)
    check_size(1, PIXEL_LIMIT, channels=1)
    check_size(1, BYTE_LIMIT // 8, channels=4, sample_bytes=2)
    for large in ((1, PIXEL_LIMIT + 1), (PIXEL_LIMIT + 1, 1, 1), (1, BYTE_LIMIT // 8 + 1, 4, 2)):
        with pytest.raises(BadImage, match="more than the limit of"):
            check_size(*large)


def test_the_hostile_webp_is_valid_and_tiny():
    assert load_image(webp(60)).size == (60, 60)
    assert len(webp(9400)) < 40


def tiff(array, **options):
    return encoded(Image.fromarray(array), "TIFF", **options)


def turned():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 6
    return encoded(PHOTO, "TIFF", tiffinfo=tags)


WIDE = (np.arange(600, dtype=np.uint16).reshape(20, 30) * 109).astype(np.uint16)
FLOATS = np.linspace(-3, 9, 600, dtype=np.float32).reshape(20, 30)
STRETCHED = np.round((FLOATS + 3) / 12 * 255)
WITH_HOLES = FLOATS.copy()
WITH_HOLES[3, 3] = np.nan
WITH_HOLES_STRETCHED = STRETCHED.copy()
WITH_HOLES_STRETCHED[3, 3] = 0

ACCEPTED = {
    "tiff": (tiff(PIXELS), PIXELS),
    "tiff lzw": (tiff(PIXELS, compression="tiff_lzw"), PIXELS),
    "tiff deflate": (tiff(PIXELS, compression="tiff_adobe_deflate"), PIXELS),
    "tiff of several pages": (
        encoded(PHOTO, "TIFF", save_all=True, append_images=[Image.new("L", (900, 700)), Image.new("1", (3, 3))]),
        PIXELS,
    ),
    "tiff turned": (turned(), np.rot90(PIXELS, -1)),
    "tiff grey": (tiff(GREY), GREY),
    "tiff 16 bits": (tiff(WIDE), WIDE >> 8),
    "tiff 16 bits, big-endian": (encoded(Image.fromarray(WIDE.astype(">u2")), "TIFF"), WIDE >> 8),
    "png 16 bits": (encoded(Image.fromarray(WIDE), "PNG"), WIDE >> 8),
    "dark png 16 bits": (encoded(Image.fromarray(WIDE % 200), "PNG"), WIDE * 0),
    "tiff floats": (tiff(FLOATS), STRETCHED),
    "tiff floats with holes": (tiff(WITH_HOLES), WITH_HOLES_STRETCHED),
    "tiff of one float": (tiff(FLOATS * 0 + 7), GREY * 0),
    "tiff 32 bits": (tiff((FLOATS * 1000).astype(np.int32)), STRETCHED),
    "tiff cmyk": (encoded(PHOTO.convert("CMYK"), "TIFF"), np.asarray(PHOTO.convert("CMYK").convert("RGB"))),
    "tiff palette": (encoded(PHOTO.quantize(16), "TIFF"), np.asarray(PHOTO.quantize(16).convert("RGB"))),
    "tiff one bit": (tiff(GREY > 99), (GREY > 99) * 255),
    "tiff with alpha": (encoded(Image.new("RGBA", (30, 20), (255, 0, 0, 0)), "TIFF"), PIXELS * 0 + 255),
    "jpeg 2000": (encoded(PHOTO, "JPEG2000"), PIXELS),
    "jpeg 2000, 16 bits": (encoded(Image.fromarray(WIDE), "JPEG2000"), WIDE >> 8),
    "jpeg 2000, bare": (encoded(PHOTO, "JPEG2000", no_jp2=True), PIXELS),
    "bmp": (encoded(PHOTO, "BMP"), PIXELS),
    "webp": (encoded(PHOTO, "WEBP", lossless=True), PIXELS),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_images_look_the_same_in_training_and_when_they_are_shrunk(name):
    data, pixels = ACCEPTED[name]
    expected = np.broadcast_to(pixels if pixels.ndim == 3 else pixels[:, :, None], (*pixels.shape[:2], 3))
    # Halves may be rounded either way.
    assert np.abs(np.asarray(load_image(data)).astype(int) - expected).max() <= (
        1 if "float" in name or "32" in name else 0
    )
    found = check_record(Record("k", data, ["a caption"]))
    assert not isinstance(found, Dropped)
    assert (found.pictures[0].height, found.pictures[0].width, found.pictures[0].encoded) == (*pixels.shape[:2], b"")
    shrunk = check_record(Record("k", data, ["a caption"]), Filters(longest_side=10, quality=100))
    assert not isinstance(shrunk, Dropped)
    small = np.asarray(load_image(shrunk.pictures[0].encoded)).astype(int)
    whole = load_image(data)
    wanted = np.asarray(whole.resize(small.shape[1::-1], Image.Resampling.BICUBIC)).astype(int)
    if name not in (
        "tiff palette",
        "tiff one bit",
        "tiff with alpha",
    ):  # these have another mean before they are converted to RGB
        assert np.abs(small - wanted).mean() < 4


def test_avif_is_accepted():
    flat = encoded(Image.new("RGB", (30, 20), (200, 30, 90)), "AVIF")
    assert np.abs(np.asarray(load_image(flat)).astype(int) - (200, 30, 90)).max() < 6
    assert (decode(flat).width, decode(flat).height) == (30, 20)


UNSUPPORTED = {
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(99),
    "JPEG XL": b"\xff\x0a" + bytes(99),
    "Photoshop": b"8BPS" + bytes(99),
    "DICOM": bytes(128) + b"DICM" + bytes(9),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(99),
    "TIFF": encoded(Image.new("LAB", (4, 4)), "TIFF"),
    "AVIF": b"\0\0\0\x18ftypavif" + bytes(99),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_formats_are_named_with_a_remedy(name):
    for take in (load_image, decode, open_picture):
        with pytest.raises(BadImage, match="convert it to PNG or JPEG") as refused:
            take(UNSUPPORTED[name])
        assert refused.value.reason == f"unsupported image format ({name})"


def test_a_tiff_that_pillow_would_invert_is_refused():
    data = bytearray(tiff(WIDE))
    at = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    data[at : at + 2] = bytes(2)
    with pytest.raises(BadImage, match="white as 0"):
        load_image(bytes(data))


@pytest.mark.parametrize("kind", ["TIFF", "JPEG2000", "AVIF"])
def test_damage_is_found_wherever_it_is(kind):
    data = encoded(PHOTO, kind)
    for length in range(0, len(data) * 3 // 4, 97):
        for take in (load_image, decode):
            with pytest.raises(BadImage):
                take(data[:length] if length else os.urandom(99))


def test_an_8_bit_grey_image_is_returned_as_it_is():
    image = Image.fromarray(GREY)
    assert eight_bits(image) is image
