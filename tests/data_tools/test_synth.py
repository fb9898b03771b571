"""Synthetic scenes are the same on every machine and never repeat, and their captions say what the pixels show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from made import read_rows, run, tree
from observer import caption, view

from data_tools.synth import blocks
from data_tools.synth.scenes import distinct_scenes, scene_key
from mvlm.data.shards.schema import read_manifest

FINGERPRINTS = {
    "train": "e2a4194e6308f3f50ea644978d2e6af1d9e6a2908070552dad496c2750ca8114",
    "eval": "3669a46d77a3a527d832a016ffd7f7f96c8653c38bb5f2e460e92133176125e4",
}
"""Of the shards of 300 scenes of seed 5, unchanged since the first version."""


def test_captions_agree_with_the_pixels(tmp_path: Path) -> None:
    run("synth", "--task", "caption", "--count", 1500, "--seed", 3, "--out", tmp_path / "out")
    for row in read_rows(tmp_path / "out"):
        assert row["captions"] == [caption(view(row["image"]))]


def test_the_bytes_never_change(tmp_path: Path) -> None:
    synth = ["synth", "--task", "caption", "--count", 300]
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(*synth, "--seed", seed, "--out", tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert [row["key"] for row in read_rows(tmp_path / "a")] != [row["key"] for row in read_rows(tmp_path / "c")]
    run(*synth, "--seed", 5, "--split", "train=0.8,eval=0.2", "--out", tmp_path / "d")
    assert {name: read_manifest(tmp_path / "d" / name).fingerprint for name in FINGERPRINTS} == FINGERPRINTS


def test_no_scene_repeats_and_splits_share_none(tmp_path: Path) -> None:
    run("synth", "--task", "caption", "--count", 900, "--split", "train=0.9,eval=0.1", "--out", tmp_path / "out")
    train, held_out = ({row["image"] for row in read_rows(tmp_path / "out" / name)} for name in ("train", "eval"))
    assert len(train) + len(held_out) == 900
    assert train.isdisjoint(held_out)
    assert 60 < len(held_out) < 125


def test_numbers_of_objects_are_as_balanced_as_the_distinct_scenes_allow() -> None:
    sizes = Counter(4 - scene.count(None) for scene in distinct_scenes(8400, 0))
    assert sizes == {1: 96, 2: 3456, 3: 4848}
    assert Counter(4 - scene.count(None) for scene in distinct_scenes(90, 0)) == {1: 30, 2: 30, 3: 30}


def test_colours_and_shapes_are_independent() -> None:
    scenes = distinct_scenes(8400, 1)
    things = Counter(thing for scene in scenes for thing in scene if thing)
    expected = things.total() / 24
    chi_squared = sum((count - expected) ** 2 / expected for count in things.values())
    assert len(things) == 24
    assert chi_squared < 50  # 23 degrees of freedom: exceeded by one seed in a thousand
    several = [scene for scene in scenes if scene.count(None) < 3]
    assert any(len({thing[0] for thing in scene if thing}) == 1 for scene in several), (
        "no scene has several things of one colour"
    )


def test_every_scene_is_available_once(fails: Callable[..., str], tmp_path: Path) -> None:
    assert len({scene_key(scene) for scene in distinct_scenes(58_848, 0)}) == 58_848
    assert "58848" in fails("synth", "--task", "caption", "--count", 58_849, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "schema_task", "own"),
    [
        ("vqa", "vqa", {"question", "answers", "question_type", "question_id"}),
        ("pairs", "nlvr2", {"image2", "sentence", "label", "group"}),
        ("entailment", "entailment", {"sentence", "label"}),
        ("foils", "foils", {"caption", "foil", "swapped"}),
    ],
)
def test_every_task_is_written_verified_and_read_back(
    task: str, schema_task: str, own: set[str], tmp_path: Path
) -> None:
    argv = ["synth", "--task", task, "--count", 700, "--split", "train=0.7,eval=0.3", "--holdout-pairs", 3]
    run(*argv, "--out", tmp_path / "out")
    run(*argv, "--out", tmp_path / "again")
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    run("verify", tmp_path / "out", "--workers", 1)
    parts = {name: read_rows(tmp_path / "out" / name) for name in ("train", "eval", "novel")}
    assert sum(map(len, parts.values())) == 700
    for name, rows in parts.items():
        assert read_manifest(tmp_path / "out" / name).task == schema_task
        assert own <= rows[0].keys()
        assert rows[0]["source"] == f"synth-{task}"
    images = {
        name: {row["image"] for row in rows} | {row.get("image2") for row in rows} - {None}
        for name, rows in parts.items()
    }
    assert images["train"].isdisjoint(images["eval"] | images["novel"])
    assert images["eval"].isdisjoint(images["novel"])


def test_too_many_scenes_and_bad_holdouts_are_one_sentence(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MAX_TRIES", 5)  # gives up sooner
    argv = ["synth", "--task", "foils", "--out", tmp_path / "out", "--count"]
    assert "too few distinct scenes" in fails(*argv, 100_000)
    assert "0 to 8" in fails(*argv, 100, "--holdout-pairs", 9)
    assert "'novel'" in fails(*argv, 100, "--holdout-pairs", 2, "--split", "novel=0.5,train=0.5")
    assert list(tmp_path.iterdir()) == []


def test_pairs_can_be_held_out_of_captions_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("synth", "--task", "caption", "--count", 400, "--holdout-pairs", 2, "--out", tmp_path / "out")
    held = capsys.readouterr().out.splitlines()[0].removeprefix("held out: ").split(", ")
    assert len(held) == 2
    for name, novel in (("train", False), ("novel", True)):
        for row in read_rows(tmp_path / "out" / name):
            assert any(thing in row["captions"][0] for thing in held) is novel
