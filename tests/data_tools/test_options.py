"""The options of `shard` that shrink images and filter records, and what is reported of dropped ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made import photo, quarantine, read_rows, run, sharded, write_captions, write_folder
from PIL import Image

from benchmarks.data.corpus import photo as lifelike
from tests.pictures import encoded, opened


def test_only_images_that_shrink_are_encoded_again(folder: Callable[[dict[str, bytes]], Path]) -> None:
    images = {"small": photo(0, size=(60, 64)), "wide": lifelike(1, (160, 90)), "tall": lifelike(2, (65, 130))}
    rows = sharded(folder(images), "--longest-side", 64)
    assert rows["small"]["image"] == images["small"]
    assert (rows["wide"]["width"], rows["wide"]["height"]) == (64, 36)
    assert (rows["tall"]["width"], rows["tall"]["height"]) == (32, 64)
    for name in ("wide", "tall"):
        small = opened(rows[name]["image"])
        assert small.format == "JPEG"
        assert small.size == (rows[name]["width"], rows[name]["height"])
        expected = opened(images[name]).resize(small.size, Image.Resampling.BICUBIC).convert("L")
        assert np.abs(np.asarray(small.convert("L"), float) - np.asarray(expected, float)).mean() < 4
    low = sharded(folder(images), "--longest-side", 64, "--quality", 20)
    assert len(low["wide"]["image"]) < len(rows["wide"]["image"])


def test_shrunk_images_are_upright_and_keep_transparency_and_profile(
    folder: Callable[[dict[str, bytes]], Path],
) -> None:
    halves = Image.new("RGB", (100, 40), "red")
    halves.paste("blue", (50, 0, 100, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated clockwise by 90 degrees
    transparent = Image.new("RGBA", (100, 50), (0, 255, 0, 0))
    sixteen_bits = Image.fromarray(np.full((50, 100), 0x8000, np.uint16))
    images = {
        "turned": encoded(halves, exif=exif, icc_profile=b"profile"),
        "transparent": encoded(transparent, "PNG"),
        "16 bits": encoded(sixteen_bits, "PNG"),
        "CMYK": encoded(halves.convert("CMYK"), icc_profile=b"CMYK profile"),
        "palette": encoded(halves.quantize(4), "PNG"),
    }
    rows = sharded(folder(images), "--longest-side", 50)
    turned = opened(rows["turned"]["image"])
    assert turned.size == (20, 50)
    red, _, blue = turned.getpixel((10, 5))
    assert red > 200 and blue < 60, "the left half must be on top"
    assert turned.getexif().get(0x0112, 1) == 1
    assert turned.info["icc_profile"] == b"profile"
    assert opened(rows["transparent"]["image"]).getpixel((3, 3))[3] == 0
    assert abs(opened(rows["16 bits"]["image"]).getpixel((3, 3)) - 0x80) <= 1
    cmyk = opened(rows["CMYK"]["image"])
    assert cmyk.mode == "RGB" and cmyk.getpixel((5, 5))[0] > 200
    assert "icc_profile" not in cmyk.info
    assert opened(rows["palette"]["image"]).mode == "RGB"


def test_small_and_elongated_images_and_short_and_long_captions_are_dropped(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", 5)
    sizes = {0: (31, 200), 1: (32, 96), 2: (32, 97), 3: (40, 40), 4: (40, 40)}
    for number, size in sizes.items():
        (tmp_path / f"in/images/{number}.jpg").write_bytes(photo(number, size=size))
    records[3]["captions"] = ["one", "one two", "one two three", "1 2 3 4"]
    records[4]["captions"] = ["one"]
    write_captions(tmp_path / "in", records)
    options = ("--min-size", 32, "--max-aspect", 3, "--caption-words", 2, 3)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", *options)
    rows = {row["key"]: row for row in read_rows(tmp_path / "out")}
    assert rows.keys() == {"r1", "r3"}
    assert rows["r3"]["captions"] == ["one two", "one two three"]
    reasons = {"r0": "image is too small", "r2": "image is too elongated", "r4": "caption has too few words"}
    assert quarantine(tmp_path / "out") == reasons
    report = json.loads((tmp_path / "out/yield.json").read_text())
    assert report["dropped_captions"] == {"caption has too few words": 1, "caption has too many words": 1}


def test_reversed_word_limits_and_a_missing_excluded_corpus_are_refused(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    write_folder(tmp_path / "in", 3)
    shard = ("shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert "smaller number first" in fails(*shard, "--caption-words", 5, 2)
    assert "does not exist" in fails(*shard, "--exclude", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (("--split", ""), "names no splits"),
        (("--split-by", "source"), "give --split too"),
        (("--quality", 50), "give --longest-side too"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    tmp_path: Path, fails: Callable[..., str], options: tuple[object, ...], advice: str
) -> None:
    write_folder(tmp_path / "in", 3)
    assert advice in fails("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", *options)
    if "--quality" not in options:
        assert advice in fails("synth", "--task", "caption", "--count", 3, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_some_missing_images_are_tolerated_but_not_all(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_folder(tmp_path / "in", 6)
    for number in range(5):
        (tmp_path / f"in/images/{number}.jpg").unlink()
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["r5"]
    (tmp_path / "in/images/5.jpg").unlink()
    assert "6 of 6" in fails("shard", "folder", tmp_path / "in", "--out", tmp_path / "none")


def test_the_yield_is_reported_by_source(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", 6)
    for number in (1, 3):
        records[number]["source"] = "web"
    (tmp_path / "in/images/3.jpg").write_bytes(b"<html>404</html>")
    write_captions(tmp_path / "in", records)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    sources = json.loads((tmp_path / "out/yield.json").read_text())["sources"]
    assert sources["web"] == {"read": 2, "kept": 1, "dropped": {"not an image": 1}}
    assert sources["made"] == {"read": 4, "kept": 4, "dropped": {}}
    assert "web: kept 1 of 2 (1 not an image)" in (tmp_path / "out/yield.txt").read_text()
