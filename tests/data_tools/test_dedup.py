"""No image twice and none of a test set: copies are found, and what only resembles another stays."""

from __future__ import annotations

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
    *parts: tuple[str, tuple[int, ...], str], side: int = 160, mode: str = "RGB", ground: str = "white"
) -> bytes:
    """A PNG of ellipses and rectangles: of each its name, its box of 160ths and its colour."""
    image = Image.new(mode, (side, side), ground)
    for shape, box, colour in parts:
        place = tuple(each * side // 160 for each in box)
        getattr(ImageDraw.Draw(image), shape)(place, fill=colour)
    return encoded(image, "PNG")


def copies(data: bytes) -> dict[str, bytes]:
    """What becomes of an image on its way through the web."""
    image = opened(data)
    width, height = image.size
    cropped = image.crop((width // 25, height // 50, width - width // 50, height - height // 25))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned a quarter clockwise
    return {
        "recoded": encoded(image, quality=50),
        "half": encoded(image.resize((width // 2, height // 2), Image.Resampling.BICUBIC)),
        "thumb": encoded(image.resize((width // 4, height // 4), Image.Resampling.LANCZOS), quality=70),
        "squeezed": encoded(image.resize((224, 224), Image.Resampling.BILINEAR)),
        "png": encoded(image.resize((300, 200)), "PNG"),
        "webp": encoded(image, "WEBP", quality=60),
        "cropped": encoded(cropped, quality=80),
        "cropped and shrunk": encoded(cropped.resize((width // 2, height // 2)), quality=80),
        "turned by its tag": encoded(image.transpose(Image.Transpose.ROTATE_90), exif=turned),
    }


FACE = (("ellipse", (10, 10, 150, 150), "orange"), ("ellipse", (45, 50, 60, 65), "black"))
COIN = ("ellipse", (60, 60, 100, 100), "gold")
DIFFERENT = {
    "another colour": (drawing(*FACE), drawing(("ellipse", (10, 10, 150, 150), "yellowgreen"), FACE[1])),
    "a shade of colour": (drawing(*FACE), drawing(("ellipse", (10, 10, 150, 150), "#ffa524"), FACE[1])),
    "tiny things": (drawing(("ellipse", (74, 74, 86, 86), "gold")), drawing(("rectangle", (74, 74, 86, 86), "gold"))),
    "a thing more": (drawing(*FACE), drawing(*FACE, ("ellipse", (100, 50, 115, 65), "black"))),
    "a thing elsewhere": (drawing(*FACE), drawing(FACE[0], ("ellipse", (45, 80, 60, 95), "black"))),
    "small things on white": (drawing(COIN), drawing(("rectangle", (60, 60, 100, 100), "gold"))),
    "a small thing elsewhere": (drawing(COIN), drawing(("ellipse", (20, 60, 60, 100), "gold"))),
    "plain colours": (drawing(), drawing(ground="ivory")),
    "faint things": (
        drawing(("ellipse", (10, 10, 150, 150), "#e8e8e8")),
        drawing(("rectangle", (10, 10, 150, 150), "#e8e8e8")),
    ),
    "black under two masks": (
        drawing(("ellipse", (10, 10, 150, 150), "#000000ff"), mode="RGBA", ground="#00000000"),
        drawing(("rectangle", (10, 70, 150, 90), "#000000ff"), mode="RGBA", ground="#00000000"),
    ),
    "long and upright": (drawing(*FACE), encoded(opened(drawing(*FACE)).resize((60, 160)), "PNG")),
    "sprites": (
        drawing(("ellipse", (20, 50, 140, 110), "white"), side=16, ground="#303840"),
        drawing(
            ("ellipse", (20, 50, 140, 110), "white"), ("rectangle", (70, 60, 90, 100), "red"), side=16, ground="#303840"
        ),
    ),
}


def like(one: bytes, other: bytes) -> bool:
    first, second = (read_perceptual_hash(perceptual_hash_of(opened(data))) for data in (one, other))
    assert same_picture(first, second) == same_picture(second, first)
    return same_picture(first, second)


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_only_resembles_another_is_another_picture(case: str) -> None:
    assert not like(*DIFFERENT[case])


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_copy_is_known_again(case: str) -> None:
    for data in DIFFERENT[case]:
        flat = opened(data).convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", flat.size, "white"), flat).convert("RGB")
        assert like(data, encoded(flat, quality=85, subsampling=0))
        assert like(data, encoded(flat.resize((flat.width * 3, flat.height * 3), Image.Resampling.BICUBIC), "WEBP"))


def test_unrelated_photographs_are_different_and_their_hashes_far_apart() -> None:
    looks = [read_perceptual_hash(perceptual_hash_of(opened(lifelike(seed, (120, 90))))) for seed in range(40)]
    pairs = [(a, b) for n, a in enumerate(looks) for b in looks[:n]]
    assert not any(same_picture(a, b) for a, b in pairs)
    apart = [(a.hashes[0] ^ b.hashes[0]).bit_count() for a, b in pairs]
    assert min(apart) > DISTANCE
    assert 28 < np.mean(apart) < 36


def test_of_several_twins_the_first_is_named_and_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    pictures, look = PerceptualHashFile(tmp_path), perceptual_hash_of(opened(lifelike(1)))
    assert pictures.twin(look, []) == ""
    numbers = [pictures.add(look, name) for name in ("first", "second")]
    assert pictures.twin(look, numbers) == "first"
    assert pictures.twin(perceptual_hash_of(opened(lifelike(2))), numbers) == ""
    assert list(tmp_path.iterdir()) == []


def test_lightly_cropped_copies_are_found(folder: Callable[[dict[str, bytes]], Path]) -> None:
    """By 4 to 6 % of two sides or of all; whichever was cropped, the second goes."""
    images = {}
    for seed in range(24):
        image = opened(lifelike(seed, (240, 180)))
        left, top, right, bottom = [(10, 8, 10, 8), (12, 0, 12, 0), (0, 10, 0, 10), (12, 10, 0, 0)][seed % 4]
        cropped = encoded(image.crop((left, top, image.width - right, image.height - bottom)), quality=70)
        both = [encoded(image), cropped] if seed % 3 else [cropped, encoded(image)]
        images |= {f"{seed} one": both[0], f"{seed} other": both[1]}
    dropped = sharded(folder(images), "--dedup", "perceptual")[""]
    assert dropped == {f"{seed} other": "image is a near duplicate" for seed in range(24)}


def details(out: Path) -> dict[str, str]:
    return {entry["key"]: entry["detail"] for entry in map(json.loads, (out / "quarantine.jsonl").open())}


def test_exact_and_perceptual_duplicates(folder: Callable[[dict[str, bytes]], Path]) -> None:
    one, other = lifelike(1), lifelike(2)
    images = {"one": one, "other": other, "same": one} | copies(one)
    exact = sharded(folder(images), "--dedup", "exact")
    assert exact[""] == {"same": "image is a duplicate"}
    near = sharded(folder(images), "--dedup", "perceptual")
    assert near[""] == dict.fromkeys(["same", *copies(one)], "image is a near duplicate")


def test_a_corpus_of_small_drawings_stays_whole(folder: Callable[[dict[str, bytes]], Path]) -> None:
    """Their hashes are within the distance of one another, or nothing but plain."""
    pictures = {f"{case} {n}": data for case, pair in DIFFERENT.items() for n, data in enumerate(pair)}
    pictures = {
        name: data for n, (name, data) in enumerate(pictures.items()) if data not in list(pictures.values())[:n]
    }
    assert sharded(folder(pictures), "--dedup", "perceptual")[""] == {}


@pytest.mark.parametrize(("dedup", "says"), [("exact", "has the bytes of"), ("perceptual", "looks like")])
def test_the_twin_is_named_and_many_are_told_loudly(
    folder: Callable[[dict[str, bytes]], Path], capsys: pytest.CaptureFixture[str], dedup: str, says: str
) -> None:
    source = folder({str(seed): lifelike(seed, (120, 90)) for seed in range(40)} | {"again": lifelike(7, (120, 90))})
    sharded(source, "--dedup", dedup)
    assert details(source.with_name("out0")) == {"again": f"{says} 7 ({source.name}/captions.jsonl:8)"}
    assert "WARNING" not in capsys.readouterr().err
    source = folder({str(seed): lifelike(seed, (120, 90)) for seed in range(20)} | {"again": lifelike(7, (120, 90))})
    sharded(source, "--dedup", dedup)
    sentence = "WARNING: 1 of 21 records (5%) were left out as copies of other images"
    said = capsys.readouterr()
    assert sentence in said.err and sentence not in said.out, "once, where both are read"
    assert sentence in (source.with_name("out1") / "yield.txt").read_text()


def test_no_image_of_an_excluded_corpus_comes_in(folder: Callable[[dict[str, bytes]], Path], tmp_path: Path) -> None:
    """Copies that were shrunk, cropped and encoded anew are left out; a hundred other images are not."""
    held_out = {str(seed): lifelike(seed) for seed in range(8)}
    run("shard", "folder", folder(held_out), "--out", tmp_path / "test", "--split", "a=0.5,b=0.5")
    leaks = {f"{name}-{kind}": data for name, one in held_out.items() for kind, data in copies(one).items()}
    fresh = {f"fresh{seed}": lifelike(100 + seed, (160, 120)) for seed in range(100)}
    source = folder(leaks | fresh)
    rows = sharded(source, "--exclude", tmp_path / "test")
    assert rows.pop("") == dict.fromkeys(leaks, "image is excluded")
    assert rows.keys() == fresh.keys()
    named = {key: detail.split(" (")[0] for key, detail in details(source.with_name("out0")).items()}
    assert named == {leak: f"looks like {leak.split('-')[0]}" for leak in leaks}
    assert all("000000.arrow)" in detail for detail in details(source.with_name("out0")).values())


def test_either_image_of_a_pair_is_excluded(tmp_path: Path) -> None:
    pictures = [photo(seed) for seed in range(6)]
    pair = {"sentence": "both are noise", "label": True, "group": "g"}
    alone = Record("alone", pictures[0], ["noise"], where="test:1")
    together = Record("pair", pictures[1], where="test:2", image2=pictures[2], columns=pair)
    for name, record in (("alone", alone), ("pairs", together)):
        shard([record], tmp_path / name, Options())
    asked = {
        "left": (pictures[0], pictures[3]),
        "right": (pictures[3], pictures[0]),
        "left of a pair": (pictures[1], pictures[4]),
        "right of a pair": (pictures[4], pictures[2]),
        "neither": (pictures[4], pictures[5]),
    }
    records = [replace(together, key=key, image=left, image2=right) for key, (left, right) in asked.items()]
    shard(records, tmp_path / "out", Options(exclude=(tmp_path / "alone", tmp_path / "pairs")))
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["neither"]
    assert details(tmp_path / "out")["right"] == f"looks like alone ({tmp_path}/alone/000000.arrow)"
    assert details(tmp_path / "out")["right of a pair"] == f"looks like pair ({tmp_path}/pairs/000000.arrow)"
