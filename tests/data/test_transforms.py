"""Images look as they should: every kind is decoded, crops match plain PIL, and views are repeatable."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from mvlm.data.images.decode import BadImage, Decoded, load_image
from mvlm.data.images.transforms import crop_box, eval_view, train_view

OFF = (0, 0)


def save(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width=90, height=70):
    """Smooth colours and an edge, which JPEG preserves well."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, np.where(x < width // 3, 40, 200)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def rng(seed=0):
    return np.random.default_rng(seed)


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_formats_are_decoded_exactly(kind):
    assert (pixels(load_image(memoryview(save(photo(), kind)))) == pixels(photo())).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_any_mode_become_rgb(mode):
    image = load_image(save(photo().convert(mode), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert np.abs(pixels(image) - pixels(photo().convert(mode).convert("RGB"))).mean() < 3


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((0, 0), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 51))
    loaded = load_image(save(image))
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (244, 204, 204), (200, 0, 0)]


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    assert load_image(save(image)).getpixel((0, 0)) == (10, 20, 30)
    loaded = load_image(save(image, transparency=0))
    assert (loaded.getpixel((0, 0)), loaded.getpixel((1, 1))) == ((255, 255, 255), (40, 50, 60))


def test_16_bit_values_are_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    loaded = pixels(load_image(save(Image.fromarray(values))))
    assert (loaded == (values >> 8)[..., None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = pixels(load_image(save(photo(), exif=exif)))
    upright = pixels(photo())
    expected = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright),
    }[orientation]
    assert loaded.shape == expected.shape and (loaded == expected).all()


def test_incomplete_and_other_files_are_refused():
    jpeg, png = save(photo(), "JPEG"), save(photo())
    for data in (b"", b"<html>not found</html>", jpeg[: len(jpeg) // 2], png[: len(png) // 2], png[:40] + bytes(90)):
        with pytest.raises(BadImage):
            load_image(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header():
    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    for side in (9_500, 100_000):
        header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        with pytest.raises(BadImage, match=r"limit|exceeds"):
            load_image(bomb)


def test_formats_that_run_programs_are_not_opened():
    with pytest.raises(BadImage, match="not an image"):
        load_image(save(photo(), "EPS"))


def test_crops_match_plain_pil():
    """Resizing a box differs from cropping and resizing only at the border, where the kernel reaches beyond it."""
    image = photo(300, 200)
    for seed in range(20):
        box = crop_box(rng(seed), image.width, image.height, (0.5, 1.0))
        view = train_view(Decoded(image), 64, rng(seed), (0.5, 1.0), False, OFF)
        assert view.shape == (3, 64, 64) and view.dtype == np.uint8 and view.flags.c_contiguous
        plain = np.asarray(image.crop(box).resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(view[:, 2:-2, 2:-2].astype(int) - plain[:, 2:-2, 2:-2]).max() <= 1


def test_crops_have_the_requested_area_and_aspect():
    areas, aspects, centres = [], [], []
    for seed in range(1500):
        left, top, right, bottom = crop_box(rng(seed), 500, 375, (0.5, 1.0))
        assert 0 <= left < right <= 500 and 0 <= top < bottom <= 375
        areas.append((right - left) * (bottom - top) / (500 * 375))
        aspects.append((right - left) / (bottom - top))
        centres.append((left + right) / 1000)
    assert min(areas) > 0.495 and max(areas) > 0.95 and min(areas) < 0.52
    assert min(aspects) > 0.74 and max(aspects) < 1.35
    assert abs(np.mean(centres) - 0.5) < 0.01


def test_area_is_drawn_evenly_and_aspect_evenly_by_its_logarithm():
    """As torchvision does, by the largest distance from the distribution where every draw fits (Kolmogorov)."""
    boxes = [crop_box(rng(seed), 2000, 2000, (0.1, 0.3)) for seed in range(3000)]
    sides = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes], dtype=float)
    area = (sides.prod(1) / 2000**2 - 0.1) / 0.2
    aspect = np.log(sides[:, 0] / sides[:, 1]) / (2 * np.log(4 / 3)) + 0.5
    for shares in (area, aspect):
        assert np.abs(np.sort(shares) - (np.arange(3000) + 0.5) / 3000).max() < 2 / 3000**0.5


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (2000, 20)])
def test_crops_of_extreme_shapes_are_central(width, height):
    left, top, right, bottom = crop_box(rng(), width, height, (0.9, 1.0))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert abs((left + right) - width) <= 1 and abs((top + bottom) - height) <= 1
    assert train_view(Decoded(Image.new("RGB", (width, height))), 32, rng(), (0.9, 1.0), True, (2, 7)).shape == (
        3,
        32,
        32,
    )


def test_without_a_crop_training_and_evaluation_see_the_same():
    assert (train_view(Decoded(photo()), 32, rng(), (1, 1), False, OFF) == eval_view(Decoded(photo()), 32)).all()
    resized = photo().resize((32, 32), Image.Resampling.BICUBIC)
    assert (eval_view(Decoded(photo()), 32) == np.asarray(resized).transpose(2, 0, 1)).all()


def test_half_of_the_views_are_mirrored_and_forbidding_it_changes_nothing_else():
    mirrored = 0
    for seed in range(200):
        plain = train_view(Decoded(photo()), 16, rng(seed), (0.5, 1), False, OFF)
        view = train_view(Decoded(photo()), 16, rng(seed), (0.5, 1), True, OFF)
        assert (view == plain).all() or (view == plain[:, :, ::-1]).all()
        mirrored += not (view == plain).all()
    assert 70 < mirrored < 130


def test_views_are_repeatable_and_do_not_change_the_image():
    image = photo()
    before = pixels(image)
    views = [train_view(Decoded(image), 24, rng(3), (0.5, 1), True, (3, 9)) for _ in range(2)]
    assert (views[0] == views[1]).all() and (pixels(image) == before).all()
    assert (views[0] != train_view(Decoded(image), 24, rng(4), (0.5, 1), True, (3, 9))).any()
