"""Augmentations compared with Pillow, with and without the native extension; none of them changes a hue."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mvlm.data.images import augment as augmenting
from mvlm.data.images.augment import ALBEF_OPERATIONS, OPERATIONS, autocontrast, brightness, randaugment, translate_x
from mvlm.data.images.decode import native_is_missing

GREY = (128, 128, 128)


@pytest.fixture(params=["native", "pillow"])
def implementation(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(augmenting, "native_is_missing", "disabled by a test")
    elif native_is_missing:
        pytest.skip(native_is_missing)


def array(image):
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def scene(size, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def hue(colour):
    return colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("level", [-1.0, -0.7, 0.7, 1.0])
@pytest.mark.parametrize("colour", [(255, 165, 0), (230, 60, 200), (90, 30, 160), (20, 200, 90)])
def test_no_operation_changes_a_hue(implementation, operation, level, colour):
    """The middle of a coloured square on grey keeps its hue: orange must not become yellow."""
    image = Image.new("RGB", (64, 64), GREY)
    image.paste(colour, (12, 12, 52, 52))
    changed = operation(array(image), level)[:, 32, 32]
    assert abs(hue(changed.tolist()) - hue(colour)) < 0.012


def test_operations_move_stretch_and_brighten(implementation):
    image = np.zeros((3, 224, 224), np.uint8)
    image[:, 112, 112] = 255
    assert np.argwhere(translate_x(image, 1.0)[0] == 255).tolist() == [[112, 102]]
    grey = np.linspace(50, 90, 3 * 64 * 64).reshape(3, 64, 64).astype(np.uint8)
    stretched = autocontrast(grey, 0.3)
    assert (stretched.min(), stretched.max()) == (0, 255)
    flat = np.full((3, 8, 8), 7, np.uint8)
    assert (autocontrast(flat, 1.0) == 7).all()
    view = array(scene(64))
    assert brightness(view, -0.7).mean() < view.mean() < brightness(view, 0.7).mean()


def pillow(name, image, level):
    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)

    size = image.width
    return {
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
        "shear_x": lambda: affine(1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": lambda: affine(1, 0, 10 / 224 * size * level, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, 10 / 224 * size * level),
        "rotate": lambda: image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=GREY),
        "brightness": lambda: Image.blend(
            image, Image.new("RGB", image.size, "white" if level > 0 else "black"), 0.5 * abs(level)
        ),
    }[name]()


@pytest.mark.parametrize("size", [1, 2, 33, 224])
@pytest.mark.parametrize("operation", OPERATIONS[2:], ids=lambda operation: operation.__name__)
def test_operations_match_pillow(implementation, operation, size):
    image = scene(size) if size > 3 else Image.new("RGB", (size, size), (10, 200, 90))
    view = array(image)
    kept = view.copy()
    for level in (-1.0, -0.63, 0.21, 0.7, 1.0):
        difference = np.abs(operation(view, level).astype(int) - array(pillow(operation.__name__, image, level)))
        assert (view == kept).all()
        # A pixel exactly on the edge of the image may fall on either side of it.
        assert (difference > 1).mean() < 0.002 and difference.mean() < 0.1


def recorders(operations, drawn):
    """Stand-ins for operations that add their name and level to `drawn` and leave the image as it is."""

    def recorder(name):
        def record(view, level):
            drawn.append((name, level))
            return view

        return record

    return tuple(recorder(operation.__name__) for operation in operations)


def test_operations_and_directions_are_equally_likely(monkeypatch):
    drawn = []
    monkeypatch.setattr(augmenting, "OPERATIONS", recorders(OPERATIONS, drawn))
    rng, view = np.random.default_rng(0), array(scene(32))
    for _ in range(2000):
        randaugment(view, rng, 2, 7)
    assert len(drawn) == 4000
    for operation in OPERATIONS:
        levels = [level for name, level in drawn if name == operation.__name__]
        assert set(levels) == {-0.7, 0.7}
        assert abs(len(levels) - 4000 / 9) < 5 * (4000 / 9) ** 0.5
        assert abs(sum(levels) / 0.7) < 5 * len(levels) ** 0.5


ALBEF = {
    "autocontrast_of_channels": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "albef_brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.8 * 0.7 + 0.1),
    "albef_sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.8 * 0.7 + 0.1),
}


@pytest.mark.parametrize("name", ALBEF)
@pytest.mark.parametrize("size", [1, 3, 40, 224])
def test_albefs_operations_match_pillow(implementation, name, size):
    operation = next(one for one in ALBEF_OPERATIONS if one.__name__ == name)
    image = scene(max(4, size), 5).crop((0, 0, size, size)).point(lambda value: 30 + value // 2)
    view = array(image)
    expected = array(ALBEF[name](image)).astype(int)
    for level in (-0.7, 0.7):
        assert np.abs(operation(view, level) - expected).max() <= (1 if name == "albef_sharpness" else 0)
    flat = np.full((3, 8, 8), 7, np.uint8)
    assert (operation(flat, 0.7) == array(ALBEF[name](Image.fromarray(flat.transpose(1, 2, 0))))).all()


def test_albefs_operations_are_equally_likely_and_skipped_half_of_the_time(monkeypatch):
    drawn = []
    monkeypatch.setattr(augmenting, "ALBEF_OPERATIONS", recorders(ALBEF_OPERATIONS, drawn))
    rng, view = np.random.default_rng(0), array(scene(32))
    for _ in range(4000):
        randaugment(view, rng, 2, 7, "albef")
    assert len(ALBEF_OPERATIONS) == 10 and abs(len(drawn) - 4000) < 5 * 2000**0.5
    names = [name for name, _ in drawn]
    assert all(abs(names.count(operation.__name__) - 400) < 5 * 400**0.5 for operation in ALBEF_OPERATIONS)


@pytest.mark.skipif(bool(native_is_missing), reason=native_is_missing)
def test_the_extension_refuses_invalid_arguments():
    view = np.zeros((3, 8, 8), np.uint8)
    for arguments in (
        (view, 9, (1, 0, 0, 0, 1, 0)),
        (view, 8, (1, 0, float("nan"), 0, 1, 0)),
        (view, 8, (1e9, 0, 0, 0, 1, 0)),
    ):
        with pytest.raises(ValueError, match="sense"):
            augmenting._native.warp(*arguments, np.empty_like(view))
    with pytest.raises(ValueError, match="sense"):
        augmenting._native.sharpen(view, 8, 0.5, view)
