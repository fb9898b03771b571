"""`retry` leaves exactly the rows that a run with all images would have kept, wherever it is interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made import photo, quarantine, read_rows, run, tree, write_folder
from PIL import Image

COUNT = 40
AWAY = range(5, 30, 4)


def keys(folder: Path) -> list[str]:
    return [row["key"] for row in read_rows(folder)]


def write_with_missing(folder: Path) -> Callable[[], None]:
    """Write a source folder with some images missing, and return a function that puts them back."""
    write_folder(folder, COUNT, group=lambda number: f"g{number % 10}")
    for number in AWAY:
        (folder / f"images/{number}.jpg").rename(folder / f"{number}.away")

    def bring_back() -> None:
        for number in AWAY:
            (folder / f"{number}.away").rename(folder / f"images/{number}.jpg")

    return bring_back


def test_recovered_rows_go_to_the_split_they_belong_to(tmp_path: Path) -> None:
    bring_back = write_with_missing(tmp_path / "in")
    options = ("--split", "train=0.6,eval=0.4", "--split-by", "group", "--shard-mb", 0.005, "--workers", 1)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", *options)
    before = {name: read_rows(tmp_path / "out" / name) for name in ("train", "eval")}
    bring_back()
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "whole", *options)
    run("retry", tmp_path / "out", "--workers", 2)
    for name, rows in before.items():
        assert read_rows(tmp_path / "out" / name)[: len(rows)] == rows
        assert sorted(keys(tmp_path / "out" / name)) == sorted(keys(tmp_path / "whole" / name))
    assert quarantine(tmp_path / "out") == {}
    yields = [json.loads((tmp_path / name / "yield.json").read_text()) for name in ("out", "whole")]
    assert yields[0] == yields[1]
    run("verify", tmp_path / "out", "--workers", 1)


def test_a_retry_killed_anywhere_is_finished_by_the_next(tmp_path: Path) -> None:
    bring_back = write_with_missing(tmp_path / "in")
    split = ("--split", "train=0.6,eval=0.4")
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "before", "--workers", 1, *split)
    bring_back()
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    run("retry", tmp_path / "after", "--workers", 1)
    old, new = tree(tmp_path / "before"), tree(tmp_path / "after")
    changed = [name for name in new if old.get(name) != new[name]]
    # The order in which files may be replaced: no manifest before its shards, no list before the manifests.
    of_rows = (".arrow", ".index", ".parquet")
    changed.sort(key=lambda name: (not name.endswith(of_rows), not name.endswith("manifest.json"), name))
    assert len(changed) == 11
    for done in range(len(changed) + 1):
        out = tmp_path / f"killed{done}"
        shutil.copytree(tmp_path / "before", out)
        for number, name in enumerate(changed):
            path = out / name if number < done else out / ".retry" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(new[name])
        (out / ".retry").mkdir(exist_ok=True)
        run("retry", out, "--workers", 1)
        assert tree(out) == new
    out = tmp_path / "killed-early"
    shutil.copytree(tmp_path / "before", out)
    (out / ".retry.partial/train").mkdir(parents=True)
    (out / ".retry.partial/train/000001.arrow").write_bytes(b"half")
    run("retry", out, "--workers", 1)
    assert tree(out) == new


def test_a_tar_cut_short_is_read_from_the_cut_onwards_once_it_is_whole(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for number in range(12):
            for suffix, data in (("jpg", b"no image" if number == 2 else photo(number)), ("txt", b"noise")):
                (tmp_path / "member").write_bytes(data)
                tar.add(tmp_path / "member", f"{number:03d}.{suffix}")
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    run("shard", "webdataset", tmp_path / "a.tar", "--out", tmp_path / "out", "--workers", 1)
    first = keys(tmp_path / "out")
    assert 3 < len(first) < 11
    (tmp_path / "a.tar").write_bytes(whole)
    run("retry", tmp_path / "out", "--workers", 1)
    assert keys(tmp_path / "out") == [f"{number:03d}" for number in range(12) if number != 2]
    assert keys(tmp_path / "out")[: len(first)] == first
    assert quarantine(tmp_path / "out") == {"002": "not an image"}


@pytest.mark.parametrize("options", [("exact", "--longest-side", 30), ("perceptual",)])
def test_a_retry_adds_no_duplicates(tmp_path: Path, options: tuple[object, ...]) -> None:
    write_folder(tmp_path / "in", 12)
    images = tmp_path / "in/images"
    missing = images / "9.jpg"
    missing.unlink()
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1, "--dedup", *options)
    assert quarantine(tmp_path / "out") == {"r9": "image is missing"}
    missing.write_bytes((images / "11.jpg").read_bytes())
    run("retry", tmp_path / "out", "--workers", 1)
    assert len(keys(tmp_path / "out")) == 11
    (reason,) = quarantine(tmp_path / "out").values()
    assert "duplicate" in reason


def test_a_retry_of_an_unchanged_source_changes_nothing(tmp_path: Path) -> None:
    """Though shrunk images look different, two folders use the same ids, and some captions were dropped."""
    write_folder(tmp_path / "in", 6)
    for number in range(4):
        large = photo(30 + number, size=(300, 200))
        (tmp_path / f"in/images/{number}.jpg").write_bytes(large)
    with (tmp_path / "in/captions.jsonl").open("a") as lines:
        for number in range(4):  # a near duplicate of each image, and a record with an id that is taken
            near = Image.open(tmp_path / f"in/images/{number}.jpg").resize((225, 150))
            near.save(tmp_path / f"in/images/near{number}.png")
            lines.write(
                json.dumps({"id": f"n{number}", "image": f"images/near{number}.png", "captions": ["a", ""]}) + "\n"
            )
        lines.write(json.dumps({"id": "r5", "image": "images/5.jpg", "captions": ["again", ""]}) + "\n")
    options = ("--dedup", "perceptual", "--longest-side", 20, "--workers", 1, "--tolerate", 1)
    shutil.copytree(tmp_path / "in", tmp_path / "two/in")
    lines = (tmp_path / "in/captions.jsonl").read_text()
    (tmp_path / "two/in/captions.jsonl").write_text(lines.replace('"r0"', '"s0"'))
    run("shard", "folder", tmp_path / "in", tmp_path / "two/in", "--out", tmp_path / "out", *options)
    before = tree(tmp_path / "out")
    assert {"image is a near duplicate", "duplicate id"} == set(quarantine(tmp_path / "out").values())
    run("retry", tmp_path / "out", "--workers", 1)
    assert tree(tmp_path / "out") == before


def test_a_retry_does_not_count_dropped_captions_again(tmp_path: Path) -> None:
    """Neither those of a duplicate image nor those of a record that no split takes."""
    write_folder(tmp_path / "in", 4)
    shutil.copy(tmp_path / "in/images/0.jpg", tmp_path / "in/images/2.jpg")
    names = ("train", "eval", "eval", "other")
    rows = [
        {"id": f"r{number}", "image": f"images/{number}.jpg", "captions": ["a picture", ""], "part": name}
        for number, name in enumerate(names)
    ]
    (tmp_path / "in/captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--dedup", "exact", "--split", "train,eval", "--split-by", "part", "--workers", 1)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", *options)
    assert set(quarantine(tmp_path / "out")) == {"r2", "r3"}
    before = (tmp_path / "out/yield.json").read_text()
    assert json.loads(before)["dropped_captions"] == {"caption is empty": 2}
    run("retry", tmp_path / "out", "--workers", 1)
    assert (tmp_path / "out/yield.json").read_text() == before


def test_a_retry_adds_no_excluded_image(tmp_path: Path) -> None:
    bring_back = write_with_missing(tmp_path / "in")
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    shutil.copytree(tmp_path / "in", tmp_path / "test")
    bring_back()
    (tmp_path / "test/images/5.jpg").write_bytes((tmp_path / "in/images/5.jpg").read_bytes())
    lines = (tmp_path / "in/captions.jsonl").read_text().splitlines()
    (tmp_path / "test/captions.jsonl").write_text(lines[5] + "\n")
    run("shard", "folder", tmp_path / "test", "--out", tmp_path / "test-shards", "--workers", 1)
    saved = json.loads((tmp_path / "out/source.json").read_text())
    saved["writing"]["exclude"] = [str(tmp_path / "test-shards")]
    (tmp_path / "out/source.json").write_text(json.dumps(saved))
    run("retry", tmp_path / "out", "--workers", 1)
    assert quarantine(tmp_path / "out") == {"r5": "image is excluded"}


def test_a_record_that_the_source_no_longer_has_stays_listed(tmp_path: Path) -> None:
    bring_back = write_with_missing(tmp_path / "in")
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    bring_back()
    lines = (tmp_path / "in/captions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "in/captions.jsonl").write_text("".join(lines[:20]))
    run("retry", tmp_path / "out", "--workers", 1)
    assert set(quarantine(tmp_path / "out")) == {f"r{number}" for number in AWAY if number >= 20}
    assert len(keys(tmp_path / "out")) == COUNT - len(quarantine(tmp_path / "out"))


def test_shards_that_cannot_be_retried_are_one_sentence_and_unchanged(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    assert "source.json" in fails("retry", tmp_path)
    write_with_missing(tmp_path / "in")
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    before = tree(tmp_path / "out")
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "Another process is retrying" in fails("retry", tmp_path / "out")
    os.close(handle)
    shutil.move(tmp_path / "in", tmp_path / "moved")
    assert "No folder or archive" in fails("retry", tmp_path / "out")
    assert tree(tmp_path / "out") == before
    (tmp_path / "out/source.json").write_text("{}")
    assert "is not valid" in fails("retry", tmp_path / "out")
