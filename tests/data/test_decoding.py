"""The decoders show the same pictures, and survive what is not one."""

import io
import struct
import threading
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

HERE = [name for name, why_not in DECODERS.items() if why_not() is None]
OPENERS = {"native": NativeJpeg.open, "simplejpeg": SimpleJpeg.open, "pillow": Decoded.open}
native = pytest.mark.skipif("native" not in HERE, reason=DECODERS["native"]() or "")


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
@pytest.mark.parametrize("name", HERE)
def test_every_decoder_shows_the_same_pixels(name, kind):
    """Against all of the image decoded by Pillow, cut and resized in float64; what remains is rounding, twice."""
    data = picture_of(kind)
    picture = OPENERS[name](data)
    assert (picture.width, picture.height) == (333, 250)
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)
    rng = np.random.default_rng(1)
    for trial in range(6):
        # No smaller, since the formula knows the filter alone, and not what comes before it where much is shrunk.
        box, size, flip = random_box(rng, 333, 250), int(rng.integers(56, 150)), bool(trial % 2)
        difference = np.abs(shown(picture, box, size, flip) - resized(whole, box, size)[:, :, :: -1 if flip else 1])
        assert difference.max() < 1.5 and difference.mean() < 0.35


def resized(pixels, box, size):
    """[H, W, 3] -> [3, size, size]: the bicubic of a = -1/2, stretched by the factor of reduction, in float64."""

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


@pytest.mark.parametrize("name", [name for name in HERE if name != "pillow"])
@pytest.mark.parametrize("kind", ["4:2:0", "grey"])
def test_shrunk_far_the_decoders_still_agree_with_pillow(name, kind):
    data = picture_of(kind, 1400, 1000)
    reference, picture = Decoded.open(data), OPENERS[name](data)
    for box, size in (((0, 0, 1400, 1000), 112), ((201, 11, 1200, 911), 40), ((400, 200, 1160, 900), 100)):
        assert shrink(box, size) > 1
        difference = np.abs(shown(picture, box, size).astype(int) - shown(reference, box, size))
        assert difference.mean() < 0.5 and np.percentile(difference, 99) <= 2


@native
@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_what_the_whole_has_there(kind, by):
    """Nothing of a part depends on where it begins: each is shown at its own size, at which nothing is resized."""
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


@pytest.mark.parametrize("name", HERE)
def test_a_plain_colour_stays_exactly_that(name):
    image = Image.new("RGB", (1000, 700), (255, 255, 255))
    for box, size in (((0, 0, 1000, 700), 224), ((3, 5, 997, 690), 50), ((10, 10, 30, 25), 224)):
        assert (shown(OPENERS[name](jpeg(image)), box, size) == 255).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("how", ["exif", "xmp", "exif that cannot be read"])
def test_pictures_stored_on_their_side_are_shown_upright(name, how):
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
def test_what_is_upright_by_its_exif_needs_no_other_decoder():
    for endian in "<>":
        exif = Image.Exif()
        exif.endian = endian
        exif[0x010F], exif[0x0112] = "a camera", 1
        assert isinstance(NativeJpeg.open(jpeg(scene(64, 48), exif=exif)), NativeJpeg)


@pytest.mark.parametrize("name", HERE)
def test_inks_are_shown_as_pillow_shows_them(name):
    data = jpeg(scene(64, 48).convert("CMYK"))
    expected = shown(Decoded(load_image(data)), (0, 0, 64, 48), 32)
    assert (shown(OPENERS[name](data), (0, 0, 64, 48), 32) == expected).all()


@pytest.mark.parametrize("name", HERE)
def test_an_odd_but_harmless_header_is_no_damage(name):
    """An unknown version of JFIF, of which libjpeg warns."""
    data = jpeg(scene(64, 48)).replace(b"JFIF\0\1", b"JFIF\0\x09")
    assert (shown(OPENERS[name](data), (0, 0, 64, 48), 32) == shown(Decoded.open(data), (0, 0, 64, 48), 32)).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_formats_go_through_pillow(kind):
    assert isinstance(open_picture(memoryview(encoded(scene(64, 48), kind))), Decoded)


@pytest.mark.parametrize("name", [name for name in HERE if name != "pillow"])
def test_damage_is_reported_in_the_words_of_the_library(name):
    data = jpeg(scene(200, 150))
    with pytest.raises(BadImage, match=r"(?i)premature end"):
        shown(OPENERS[name](data[: len(data) // 2]), (0, 0, 200, 150), 64)
    with pytest.raises(BadImage):
        OPENERS[name](data[:3])


@native
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_thousands_of_damaged_files_end_in_a_picture_or_in_bad_image():
    rng = np.random.default_rng(3)
    sources = [picture_of(kind, 64, 48) for kind in KINDS] + [jpeg(scene(64, 48), exif=full_exif(), xmp=b"<x/>" * 20)]
    outcomes = {True: 0, False: 0}
    for trial in range(4000):
        data = bytearray(sources[trial % len(sources)])
        match trial % 4:
            case 0:
                del data[int(rng.integers(len(data))) :]
            case 1:
                for at in rng.integers(len(data), size=int(rng.integers(1, 20))):
                    data[at] = rng.integers(256)
            case 2:
                # The headers are but a small part, and say how large everything is.
                data[int(rng.integers(2, 700)) % len(data)] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
            case 3:
                first, last = sorted(rng.integers(len(data), size=2))
                del data[first:last]
        try:
            picture = NativeJpeg.open(bytes(data))
            shown(picture, random_box(rng, picture.width, picture.height), int(rng.integers(1, 40)), bool(trial & 8))
            outcomes[True] += 1
        except BadImage:
            outcomes[False] += 1
    assert min(outcomes.values()) > 400


def full_exif():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 1, "a camera", 72.0
    return exif


@native
def test_damaged_files_leave_no_memory_behind():
    rng = np.random.default_rng(4)
    data = picture_of("progressive", 300, 200)
    pieces = [data[: int(cut)] for cut in rng.integers(20, len(data) - 2, size=40)]

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def go():
        for piece in pieces * 10:
            with pytest.raises(BadImage):
                shown(NativeJpeg.open(piece), (0, 0, 300, 200), 64)

    go()
    before = resident()
    go()
    # 400 times the coefficients of 300 x 200 pixels would be 70 MB.
    assert resident() - before < 5e6


@native
def test_an_image_that_claims_to_be_huge_is_refused_by_its_header():
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
def test_the_extension_refuses_what_makes_no_sense(arguments):
    box, by, size = arguments
    with pytest.raises(ValueError, match=r"outside|sense"):
        decoding._native.view(jpeg(scene(64, 48)), box, by, False, size, np.empty((3, 32, 32), np.uint8))


@native
def test_threads_decode_at_once_and_alike():
    data, size = picture_of("4:2:0", 500, 375), 224
    expected = shown(NativeJpeg.open(data), (20, 10, 480, 370), size)
    same = []

    def go():
        picture = NativeJpeg.open(data)
        same.extend((shown(picture, (20, 10, 480, 370), size) == expected).all() for _ in range(40))

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(same) == 160 and all(same)


def test_the_choice_says_what_was_passed_over(monkeypatch):
    monkeypatch.delenv(FORCE, raising=False)
    assert chosen().name == HERE[0]
    monkeypatch.setenv(FORCE, "pillow")
    assert chosen().name == "pillow" and set(chosen().passed_over) == {"native", "simplejpeg"}
    assert isinstance(open_picture(jpeg(scene(20, 20))), Decoded)
    monkeypatch.setenv(FORCE, "photoshop")
    with pytest.raises(UserError, match="native, simplejpeg, pillow"):
        open_picture(jpeg(scene(20, 20)))


def test_without_the_extension_simplejpeg_is_next_and_says_why(monkeypatch):
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
