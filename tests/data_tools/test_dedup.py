"""Copies, and images of an excluded corpus, are dropped; images that merely resemble others are kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import photo, read_rows, run, sharded
from PIL import Image, ImageDraw

from benchmarks.data.corpus import photo as lifelike
from data_tools.near import DISTANCE
from data_tools.perceptual_hash import perceptual_hash_of, read_perceptual_hash, same_picture
from data_tools.perceptual_hash_file import PerceptualHashFile
from data_tools.pipeline import Options
from data_tools.record import Record
from data_tools.sharding import shard
from tests.pictures import encoded, opened


def drawing(
    *parts: tuple[str, tuple[int, ...], str], side: int = 160, mode: str = "RGB", background: str = "white"
) -> bytes:
    """A square PNG of ellipses and rectangles, each a name, a box in 160ths of the side and a colour."""
    image = Image.new(mode, (side, side), background)
    for shape, box, colour in parts:
        corners = tuple(edge * side // 160 for edge in box)
        getattr(ImageDraw.Draw(image), shape)(corners, fill=colour)
    return encoded(image, "PNG")


def copies(data: bytes) -> dict[str, bytes]:
    """Copies of an image as they circulate on the web, by what was done to them."""
    image = opened(data)
    width, height = image.size
    cropped = image.crop((width // 25, height // 50, width - width // 50, height - height // 25))
    rotation = Image.Exif()
    rotation[0x0112] = 6  # shown rotated clockwise by 90 degrees
    return {
        "recompressed": encoded(image, quality=50),
        "half": encoded(image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)),
        "thumbnail": encoded(image.resize((width // 4, height // 4), Image.Resampling.LANCZOS), quality=70),
        "squeezed": encoded(image.resize((224, 224), Image.Resampling.BILINEAR)),
        "png": encoded(image.resize((300, 200)), "PNG"),
        "webp": encoded(image, "WEBP", quality=60),
        "cropped": encoded(cropped, quality=80),
        "cropped and shrunk": encoded(cropped.resize((width // 2, height // 2)), quality=80),
        "turned by its EXIF": encoded(image.transpose(Image.Transpose.ROTATE_90), exif=rotation),
    }


FACE = (("ellipse", (10, 10, 150, 150), "orange"), ("ellipse", (45, 50, 60, 65), "black"))
COIN = ("ellipse", (60, 60, 100, 100), "gold")
DIFFERENT = {
    "another colour": (drawing(*FACE), drawing(("ellipse", (10, 10, 150, 150), "yellowgreen"), FACE[1])),
    "another shade": (drawing(*FACE), drawing(("ellipse", (10, 10, 150, 150), "#ffa524"), FACE[1])),
    "tiny shapes": (drawing(("ellipse", (74, 74, 86, 86), "gold")), drawing(("rectangle", (74, 74, 86, 86), "gold"))),
    "one thing more": (drawing(*FACE), drawing(*FACE, ("ellipse", (100, 50, 115, 65), "black"))),
    "one thing elsewhere": (drawing(*FACE), drawing(FACE[0], ("ellipse", (45, 80, 60, 95), "black"))),
    "small shapes on white": (drawing(COIN), drawing(("rectangle", (60, 60, 100, 100), "gold"))),
    "a small shape elsewhere": (drawing(COIN), drawing(("ellipse", (20, 60, 60, 100), "gold"))),
    "plain colours": (drawing(), drawing(background="ivory")),
    "faint shapes": (
        drawing(("ellipse", (10, 10, 150, 150), "#e8e8e8")),
        drawing(("rectangle", (10, 10, 150, 150), "#e8e8e8")),
    ),
    "black under two masks": (
        drawing(("ellipse", (10, 10, 150, 150), "#000000ff"), mode="RGBA", background="#00000000"),
        drawing(("rectangle", (10, 70, 150, 90), "#000000ff"), mode="RGBA", background="#00000000"),
    ),
    "square and narrow": (drawing(*FACE), encoded(opened(drawing(*FACE)).resize((60, 160)), "PNG")),
    "sprites": (
        drawing(("ellipse", (20, 50, 140, 110), "white"), side=16, background="#303840"),
        drawing(
            ("ellipse", (20, 50, 140, 110), "white"),
            ("rectangle", (70, 60, 90, 100), "red"),
            side=16,
            background="#303840",
        ),
    ),
}


def alike(one: bytes, other: bytes) -> bool:
    """Whether two images count as the same picture, in either order."""
    first, second = (read_perceptual_hash(perceptual_hash_of(opened(data))) for data in (one, other))
    assert same_picture(first, second) == same_picture(second, first)
    return same_picture(first, second)


@pytest.mark.parametrize("case", DIFFERENT)
def test_pictures_that_merely_resemble_each_other_are_different(case: str) -> None:
    assert not alike(*DIFFERENT[case])


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_copy_of_a_drawing_is_found(case: str) -> None:
    for data in DIFFERENT[case]:
        picture = opened(data).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        assert alike(data, encoded(flat, quality=85, subsampling=0))
        assert alike(data, encoded(flat.resize((flat.width * 3, flat.height * 3), Image.Resampling.BICUBIC), "WEBP"))


def test_unrelated_photographs_are_different_and_their_hashes_far_apart() -> None:
    hashes = [read_perceptual_hash(perceptual_hash_of(opened(lifelike(seed, (120, 90))))) for seed in range(40)]
    pairs = list(itertools.combinations(hashes, 2))
    assert not any(same_picture(one, other) for one, other in pairs)
    distances = [(one.hashes[0] ^ other.hashes[0]).bit_count() for one, other in pairs]
    assert min(distances) > DISTANCE
    assert 28 < np.mean(distances) < 36, "unrelated hashes differ in about half of their 64 bits"


def test_the_first_of_several_twins_is_named_and_no_file_is_left(tmp_path: Path) -> None:
    hashes, picture = PerceptualHashFile(tmp_path), perceptual_hash_of(opened(lifelike(1)))
    assert hashes.twin(picture, []) == ""
    numbers = [hashes.add(picture, name) for name in ("first", "second")]
    assert hashes.twin(picture, numbers) == "first"
    assert hashes.twin(perceptual_hash_of(opened(lifelike(2))), numbers) == ""
    assert list(tmp_path.iterdir()) == []


MARGINS = [(10, 8, 10, 8), (12, 0, 12, 0), (0, 10, 0, 10), (12, 10, 0, 0)]
"""Pixels cropped from the left, top, right and bottom of 240 x 180: 4 to 6 % of two sides or of all."""


def test_the_second_of_an_image_and_its_lightly_cropped_copy_is_dropped(
    folder: Callable[[dict[str, bytes]], Path],
) -> None:
    images = {}
    for seed in range(24):
        image = opened(lifelike(seed, (240, 180)))
        left, top, right, bottom = MARGINS[seed % 4]
        cropped = encoded(image.crop((left, top, image.width - right, image.height - bottom)), quality=70)
        first, second = (encoded(image), cropped) if seed % 3 else (cropped, encoded(image))
        images |= {f"{seed} first": first, f"{seed} second": second}
    dropped = sharded(folder(images), "--dedup", "perceptual")[""]
    assert dropped == {f"{seed} second": "image is a near duplicate" for seed in range(24)}


def details(out: Path) -> dict[str, str]:
    """The details of why records were dropped, by key."""
    return {entry["key"]: entry["detail"] for entry in map(json.loads, (out / "quarantine.jsonl").open())}


def test_exact_deduplication_drops_equal_bytes_and_perceptual_deduplication_also_copies(
    folder: Callable[[dict[str, bytes]], Path],
) -> None:
    one, other = lifelike(1), lifelike(2)
    images = {"one": one, "other": other, "same": one} | copies(one)
    exact = sharded(folder(images), "--dedup", "exact")
    assert exact[""] == {"same": "image is a duplicate"}
    near = sharded(folder(images), "--dedup", "perceptual")
    assert near[""] == dict.fromkeys(["same", *copies(one)], "image is a near duplicate")


def test_no_drawing_is_dropped_as_a_copy_of_another(folder: Callable[[dict[str, bytes]], Path]) -> None:
    """Their hashes are near each other, or say only that the image is plain."""
    distinct = dict.fromkeys(data for pair in DIFFERENT.values() for data in pair)
    pictures = {str(number): data for number, data in enumerate(distinct)}
    assert sharded(folder(pictures), "--dedup", "perceptual")[""] == {}


@pytest.mark.parametrize(("dedup", "says"), [("exact", "has the bytes of"), ("perceptual", "looks like")])
def test_the_twin_is_named_and_many_copies_give_a_warning(
    folder: Callable[[dict[str, bytes]], Path], capsys: pytest.CaptureFixture[str], dedup: str, says: str
) -> None:
    images = {str(seed): lifelike(seed, (120, 90)) for seed in range(40)}
    source = folder(images | {"again": images["7"]})
    sharded(source, "--dedup", dedup)
    assert details(source.with_name("out0")) == {"again": f"{says} 7 ({source.name}/captions.jsonl:8)"}
    assert "WARNING" not in capsys.readouterr().err
    source = folder({str(seed): images[str(seed)] for seed in range(20)} | {"again": images["7"]})
    sharded(source, "--dedup", dedup)
    warning = "WARNING: 1 of 21 records (5%) were left out as copies of other images"
    printed = capsys.readouterr()
    assert printed.err.count(warning) == 1
    assert warning not in printed.out, "a terminal shows both streams and would show it twice"
    assert warning in (source.with_name("out1") / "yield.txt").read_text()


def test_no_image_of_an_excluded_corpus_is_kept(folder: Callable[[dict[str, bytes]], Path], tmp_path: Path) -> None:
    """Not even shrunk, cropped and re-encoded copies; a hundred other images are kept."""
    held_out = {str(seed): lifelike(seed) for seed in range(8)}
    run("shard", "folder", folder(held_out), "--out", tmp_path / "test", "--split", "a=0.5,b=0.5")
    leaks = {f"{name}-{kind}": data for name, one in held_out.items() for kind, data in copies(one).items()}
    fresh = {f"fresh{seed}": lifelike(100 + seed, (160, 120)) for seed in range(100)}
    source = folder(leaks | fresh)
    rows = sharded(source, "--exclude", tmp_path / "test")
    assert rows.pop("") == dict.fromkeys(leaks, "image is excluded")
    assert rows.keys() == fresh.keys()
    found = details(source.with_name("out0"))
    looks_like = {key: detail.split(" (")[0] for key, detail in found.items()}
    assert looks_like == {leak: f"looks like {leak.split('-')[0]}" for leak in leaks}
    assert all("000000.arrow)" in detail for detail in found.values())


def test_a_pair_is_excluded_if_either_of_its_images_is(tmp_path: Path) -> None:
    pictures = [photo(seed) for seed in range(6)]
    pair = {"sentence": "both are noise", "label": True, "group": "g"}
    alone = Record("alone", pictures[0], ["noise"], where="test:1")
    together = Record("pair", pictures[1], where="test:2", image2=pictures[2], columns=pair)
    for name, record in (("alone", alone), ("pairs", together)):
        shard([record], tmp_path / name, Options())
    pairs = {
        "left": (pictures[0], pictures[3]),
        "right": (pictures[3], pictures[0]),
        "left of a pair": (pictures[1], pictures[4]),
        "right of a pair": (pictures[4], pictures[2]),
        "neither": (pictures[4], pictures[5]),
    }
    records = [replace(together, key=key, image=left, image2=right) for key, (left, right) in pairs.items()]
    shard(records, tmp_path / "out", Options(exclude=(tmp_path / "alone", tmp_path / "pairs")))
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["neither"]
    assert details(tmp_path / "out")["right"] == f"looks like alone ({tmp_path}/alone/000000.arrow)"
    assert details(tmp_path / "out")["right of a pair"] == f"looks like pair ({tmp_path}/pairs/000000.arrow)"
