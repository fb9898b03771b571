"""The decoders show the same pictures, and report damaged ones."""

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mvlm.data.images import decode as decoding
from mvlm.data.images.decode import (
    DECODERS,
    FORCE,
    BadImage,
    Decoded,
    NativeJpeg,
    SimpleJpeg,
    chosen,
    load_image,
    open_picture,
    shrink,
)
from mvlm.errors import UserError
from tests.pictures import encoded

AVAILABLE = [name for name, why_not in DECODERS.items() if why_not() is None]
OPENERS = {"native": NativeJpeg.open, "simplejpeg": SimpleJpeg.open, "pillow": Decoded.open}
native = pytest.mark.skipif("native" not in AVAILABLE, reason=DECODERS["native"]() or "")


def scene(width, height, seed=0):
    """Structure at several scales and some grain, as photographs have."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for columns, spread in ((4, 70), (20, 35), (80, 20)):
        grid = rng.normal(0, spread, (columns * 3 // 4, columns, 3)).astype(np.float32)
        layers = [Image.fromarray(grid[:, :, c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        pixels += np.stack(layers, 2)
    pixels += rng.normal(0, 2, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(image, **options):
    return encoded(image, **{"quality": 90, **options})


def shown(picture, box, size, flip=False):
    out = np.full((3, size, size), 77, np.uint8)
    picture.show(box, size, flip, out)
    return out


def random_box(rng, width, height):
    w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return left, top, left + w, top + h


KINDS = {
    "4:2:0": {},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "RGB": {"keep_rgb": True},
    "grey": {},
}


@cache
def picture_of(kind, width=333, height=250):
    image = scene(width, height)
    return jpeg(image.convert("L") if kind == "grey" else image, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", AVAILABLE)
def test_every_decoder_shows_the_same_pixels(name, kind):
    """Compared with the whole image decoded by Pillow, cropped and resized in float64; each rounds twice."""
    data = picture_of(kind)
    picture = OPENERS[name](data)
    assert (picture.width, picture.height) == (333, 250)
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)
    rng = np.random.default_rng(1)
    for trial in range(6):
        # Not smaller, since decoders shrink by another filter first where much is shrunk, which the formula does not.
        box, size, flip = random_box(rng, 333, 250), int(rng.integers(56, 150)), bool(trial % 2)
        difference = np.abs(shown(picture, box, size, flip) - resized(whole, box, size)[:, :, :: -1 if flip else 1])
        assert difference.max() < 1.5 and difference.mean() < 0.35


def resized(pixels, box, size):
    """[H, W, 3] -> [3, size, size]: bicubic with a = -1/2, stretched by the factor of reduction, in float64."""

    def weights(first, last, limit):
        scale = (last - first) / size
        stretch = max(scale, 1)
        centre = first + (np.arange(size) + 0.5) * scale
        x = np.abs((np.arange(limit) + 0.5 - centre[:, None]) / stretch)
        value = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
        return value / value.sum(1, keepdims=True)

    across, down = weights(box[0], box[2], pixels.shape[1]), weights(box[1], box[3], pixels.shape[0])
    half = np.clip(pixels.transpose(2, 0, 1) @ across.T, 0, 255)
    return np.clip(down @ half, 0, 255)


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name != "pillow"])
@pytest.mark.parametrize("kind", ["4:2:0", "grey"])
def test_decoders_agree_with_pillow_on_images_that_are_shrunk_a_lot(name, kind):
    data = picture_of(kind, 1400, 1000)
    reference, picture = Decoded.open(data), OPENERS[name](data)
    for box, size in (((0, 0, 1400, 1000), 112), ((201, 11, 1200, 911), 40), ((400, 200, 1160, 900), 100)):
        assert shrink(box, size) > 1
        difference = np.abs(shown(picture, box, size).astype(int) - shown(reference, box, size))
        assert difference.mean() < 0.5 and np.percentile(difference, 99) <= 2


@native
@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_decoded_as_within_the_whole(kind, by):
    """Wherever it begins; each part is shown at its own size, without resizing."""
    data = picture_of(kind)
    width, height = 333 // by, 250 // by
    colours = "GRAY" if kind == "grey" else "RGB"
    whole = simplejpeg.decode_jpeg(data, colours, min_width=-(-333 // by), min_height=-(-250 // by))
    rng = np.random.default_rng(2)
    for _ in range(8):
        size = int(rng.integers(1, height))
        left, top = int(rng.integers(width - size + 1)), int(rng.integers(height - size + 1))
        box = (left * by, top * by, (left + size) * by, (top + size) * by)
        part = np.empty((3, size, size), np.uint8)
        assert decoding._native.view(data, box, by, False, size, part)
        assert (part == whole[top : top + size, left : left + size].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_uniform_colour_is_preserved_exactly(name):
    image = Image.new("RGB", (1000, 700), (255, 255, 255))
    for box, size in (((0, 0, 1000, 700), 224), ((3, 5, 997, 690), 50), ((10, 10, 30, 25), 224)):
        assert (shown(OPENERS[name](jpeg(image)), box, size) == 255).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize("how", ["exif", "xmp", "exif that cannot be read"])
def test_rotated_pictures_are_shown_upright(name, how):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {
        "exif": {"exif": exif},
        "xmp": {"xmp": b"<x:xmpmeta><rdf:Description tiff:Orientation='6'/></x:xmpmeta>"},
        "exif that cannot be read": {"exif": exif.tobytes()[:-8]},
    }[how]
    data = jpeg(scene(120, 80), **options)
    picture, upright = OPENERS[name](data), load_image(data)
    size = (picture.width, picture.height)
    assert size == upright.size
    assert (shown(picture, (0, 0, *size), 64) == shown(Decoded(upright), (0, 0, *size), 64)).all()


@native
def test_the_native_decoder_shows_pictures_that_are_upright_by_their_exif():
    for endian in "<>":
        exif = Image.Exif()
        exif.endian = endian
        exif[0x010F], exif[0x0112] = "a camera", 1
        assert isinstance(NativeJpeg.open(jpeg(scene(64, 48), exif=exif)), NativeJpeg)


@pytest.mark.parametrize("name", AVAILABLE)
def test_cmyk_is_shown_as_by_pillow(name):
    data = jpeg(scene(64, 48).convert("CMYK"))
    expected = shown(Decoded(load_image(data)), (0, 0, 64, 48), 32)
    assert (shown(OPENERS[name](data), (0, 0, 64, 48), 32) == expected).all()


@pytest.mark.parametrize("name", AVAILABLE)
def test_an_unknown_version_of_jfif_is_accepted(name):
    """libjpeg only warns of it."""
    data = jpeg(scene(64, 48)).replace(b"JFIF\0\1", b"JFIF\0\x09")
    assert (shown(OPENERS[name](data), (0, 0, 64, 48), 32) == shown(Decoded.open(data), (0, 0, 64, 48), 32)).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_formats_are_decoded_by_pillow(kind):
    assert isinstance(open_picture(memoryview(encoded(scene(64, 48), kind))), Decoded)


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name != "pillow"])
def test_damage_is_reported_with_the_message_of_the_library(name):
    data = jpeg(scene(200, 150))
    with pytest.raises(BadImage, match=r"(?i)premature end"):
        shown(OPENERS[name](data[: len(data) // 2]), (0, 0, 200, 150), 64)
    with pytest.raises(BadImage):
        OPENERS[name](data[:3])


@native
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_thousands_of_damaged_files_give_a_picture_or_bad_image():
    rng = np.random.default_rng(3)
    sources = [picture_of(kind, 64, 48) for kind in KINDS] + [jpeg(scene(64, 48), exif=full_exif(), xmp=b"<x/>" * 20)]
    shown_count = refused_count = 0
    for trial in range(4000):
        data = bytearray(sources[trial % len(sources)])
        match trial % 4:
            case 0:
                del data[int(rng.integers(len(data))) :]
            case 1:
                for at in rng.integers(len(data), size=int(rng.integers(1, 20))):
                    data[at] = rng.integers(256)
            case 2:
                # Headers are a small part of a file, but determine all sizes.
                data[int(rng.integers(2, 700)) % len(data)] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
            case 3:
                first, last = sorted(rng.integers(len(data), size=2))
                del data[first:last]
        try:
            picture = NativeJpeg.open(bytes(data))
            shown(picture, random_box(rng, picture.width, picture.height), int(rng.integers(1, 40)), bool(trial & 8))
            shown_count += 1
        except BadImage:
            refused_count += 1
    assert min(shown_count, refused_count) > 400


def full_exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 1, "a camera", 72.0
    return exif


@native
def test_damaged_files_leak_no_memory():
    rng = np.random.default_rng(4)
    data = picture_of("progressive", 300, 200)
    pieces = [data[: int(cut)] for cut in rng.integers(20, len(data) - 2, size=40)]

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def decode_all():
        for piece in pieces * 10:
            with pytest.raises(BadImage):
                shown(NativeJpeg.open(piece), (0, 0, 300, 200), 64)

    decode_all()
    before = resident()
    decode_all()
    # The coefficients of 400 images of 300 x 200 pixels would take 70 MB.
    assert resident() - before < 5e6


@native
def test_an_image_with_a_huge_size_in_its_header_is_refused():
    data = jpeg(Image.new("L", (64, 48)))
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(BadImage, match="limit"):
        NativeJpeg.open(data[:at] + struct.pack(">HH", 65500, 65500) + data[at + 4 :])


@native
@pytest.mark.parametrize(
    "arguments",
    [
        ((0, 0, 65, 48), 1, 32),
        ((0, 0, 0, 48), 1, 32),
        ((-1, 0, 9, 9), 1, 32),
        ((0, 0, 64, 48), 3, 32),
        ((0, 0, 9, 9), 1, 0),
    ],
)
def test_the_extension_refuses_invalid_arguments(arguments):
    box, by, size = arguments
    with pytest.raises(ValueError, match=r"outside|sense"):
        decoding._native.view(jpeg(scene(64, 48)), box, by, False, size, np.empty((3, 32, 32), np.uint8))


@native
def test_threads_decode_the_same_at_the_same_time():
    data, size = picture_of("4:2:0", 500, 375), 224
    expected = shown(NativeJpeg.open(data), (20, 10, 480, 370), size)

    def decodes_the_same(_):
        picture = NativeJpeg.open(data)
        return all((shown(picture, (20, 10, 480, 370), size) == expected).all() for _ in range(40))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(decodes_the_same, range(4)))


def test_the_choice_of_a_decoder_names_those_passed_over(monkeypatch):
    monkeypatch.delenv(FORCE, raising=False)
    assert chosen().name == AVAILABLE[0]
    monkeypatch.setenv(FORCE, "pillow")
    assert chosen().name == "pillow" and set(chosen().passed_over) == {"native", "simplejpeg"}
    assert isinstance(open_picture(jpeg(scene(20, 20))), Decoded)
    monkeypatch.setenv(FORCE, "photoshop")
    with pytest.raises(UserError, match="native, simplejpeg, pillow"):
        open_picture(jpeg(scene(20, 20)))


def test_without_the_extension_simplejpeg_is_chosen_and_the_reason_given(monkeypatch):
    monkeypatch.setattr(decoding, "native_is_missing", "no compiler")
    decoding._choose.cache_clear()
    monkeypatch.delenv(FORCE, raising=False)
    try:
        assert chosen() == decoding.Choice("simplejpeg", {"native": "no compiler"})
        assert isinstance(open_picture(jpeg(scene(20, 20))), SimpleJpeg)
        monkeypatch.setenv(FORCE, "native")
        with pytest.raises(UserError, match="no compiler"):
            chosen()
    finally:
        decoding._choose.cache_clear()
