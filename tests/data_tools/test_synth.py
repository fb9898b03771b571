"""Scenes: the same on every machine, never repeated, and captions that say what the pixels show."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from made import read_rows, run, tree
from PIL import Image

from data_tools.synth import distinct_scenes, scene_key

GOLDEN = "fdb3cecf3f867e39ea1c15efc13588905012e8467e77459d5c7c3e28fcf6de38"
"""SHA-256 of the keys and images of 300 scenes of seed 5."""

NAMED = {
    (255, 0, 0): "red",
    (0, 160, 0): "green",
    (0, 0, 255): "blue",
    (255, 255, 0): "yellow",
    (160, 32, 240): "purple",
    (255, 140, 0): "orange",
}


def seen_shape(mask: np.ndarray) -> str:
    """A shape by its outline alone, from a 16 x 16 mask: widths of its rows, not the drawing's formulas."""
    widths = mask.sum(1)
    rows = widths[widths > 0]
    if (rows == rows[0]).all():
        return "square"
    if (np.diff(rows) >= 0).all():
        return "triangle"
    changes = np.sign(np.diff(rows))
    changes = changes[changes != 0]
    return "circle" if (changes[:-1] >= changes[1:]).all() else "star"  # wider then narrower, once


def seen(image: bytes) -> str:
    """The caption an observer would write who knows only the grammar."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    things = []
    for place, (y, x) in {
        "top left": (0, 0),
        "top right": (0, 16),
        "bottom left": (16, 0),
        "bottom right": (16, 16),
    }.items():
        cell = pixels[y : y + 16, x : x + 16]
        mask = (cell != 255).any(2)
        if mask.any():
            (colour,) = {tuple(map(int, pixel)) for pixel in cell[mask]}
            things.append(f"{NAMED[colour]} {seen_shape(mask)} {place}")
    return ", ".join(things)


def test_captions_agree_with_the_pixels(tmp_path: Path) -> None:
    run("synth", "--task", "caption", "--count", 1500, "--seed", 3, "--out", tmp_path / "out")
    for row in read_rows(tmp_path / "out"):
        assert row["captions"] == [seen(row["image"])]


def test_the_bytes_never_change(tmp_path: Path) -> None:
    run("synth", "--task", "caption", "--count", 300, "--seed", 5, "--out", tmp_path / "a")
    run("synth", "--task", "caption", "--count", 300, "--seed", 5, "--out", tmp_path / "b")
    run("synth", "--task", "caption", "--count", 300, "--seed", 6, "--out", tmp_path / "c")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    rows = read_rows(tmp_path / "a")
    assert [row["key"] for row in rows] != [row["key"] for row in read_rows(tmp_path / "c")]
    content = hashlib.sha256(b"".join(row["key"].encode() + row["image"] for row in rows)).hexdigest()
    assert content == GOLDEN


def test_no_scene_repeats_and_splits_share_none(tmp_path: Path) -> None:
    run("synth", "--task", "caption", "--count", 900, "--split", "train=0.9,eval=0.1", "--out", tmp_path / "out")
    train, held_out = ({row["image"] for row in read_rows(tmp_path / "out" / name)} for name in ("train", "eval"))
    assert len(train) + len(held_out) == 900
    assert train.isdisjoint(held_out)
    assert 60 < len(held_out) < 125


def test_numbers_of_objects_are_as_even_as_the_supply_allows() -> None:
    sizes = Counter(4 - scene.count(None) for scene in distinct_scenes(8400, 0))
    assert sizes == {1: 96, 2: 3456, 3: 4848}
    assert Counter(4 - scene.count(None) for scene in distinct_scenes(90, 0)) == {1: 30, 2: 30, 3: 30}


def test_colours_and_shapes_are_independent() -> None:
    scenes = distinct_scenes(8400, 1)
    things = Counter(thing for scene in scenes for thing in scene if thing)
    expected = things.total() / 24
    chi_squared = sum((count - expected) ** 2 / expected for count in things.values())
    assert len(things) == 24
    assert chi_squared < 50  # 23 degrees of freedom: exceeded once in a thousand seeds
    same = [scene for scene in scenes if len({thing[0] for thing in scene if thing}) == 1 and scene.count(None) < 3]
    assert same, "several objects of one colour are allowed"


def test_every_scene_can_be_had_once(fails: Callable[..., str], tmp_path: Path) -> None:
    assert len({scene_key(scene) for scene in distinct_scenes(58_848, 0)}) == 58_848
    assert "58848" in fails("synth", "--task", "caption", "--count", 58_849, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
