"""Folders of downloads: file names mean only what the user says they mean, and failures keep their reasons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import photo, quarantine, read_rows, run
from samples import (
    SAMPLES,
    downloads,
    hf_table,
    img2dataset_rows,
    put,
    status_row,
    write_img2dataset_tar,
    write_saved,
    write_status,
)


def test_rows_counted_from_0_and_1_are_not_mixed_up(tmp_path: Path) -> None:
    tsv, rows, _ = downloads(tmp_path, lambda n, url: f"{n + 1:05d}.jpg")
    argv = ("shard", "cc", tsv, "--images", tmp_path / "training", "--workers", 1, "--tolerate", 1)
    run(*argv, "--names", "row1", "--out", tmp_path / "out")
    assert [row["image"] for row in read_rows(tmp_path / "out")] == [row["image"] for row in rows.values()]


def test_a_missing_or_ambiguous_naming_is_one_sentence(tmp_path: Path, fails: Callable[..., str]) -> None:
    tsv, _, _ = downloads(tmp_path, lambda n, url: f"{n}.jpg")
    (tmp_path / "bad.tsv").write_text("http://a/b\t../secret.jpg\n")
    shard = ("shard", "cc", tsv, "--images", tmp_path / "training", "--out", tmp_path / "out")
    assert "needs --names" in fails(*shard)
    assert "none of row0, row1, md5" in fails(*shard, "--names", "rows")
    assert "mix up" in fails(*shard, "--names", "basename")
    assert "bad.tsv line 1" in fails(*shard, "--names", tmp_path / "bad.tsv")
    assert "takes one file" in fails(*shard[:3], tsv, *shard[3:], "--names", "row0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("coco", "a.json"), "needs --images"),
        (("folder", ".", "--images", "photos"), "takes no --images"),
        (("vg", "missing.json", "--images", "."), "No file or folder at missing.json"),
        (("karpathy", "a.json", "--images", "nowhere"), "No folder of images at nowhere"),
        (("karpathy", "a.json", "--images", ".", "--subset", "training"), "--subset has 'training'"),
        (("vqa", "a.json", "--images", ".", "--annotations", "a.json", "a.json"), "pair them"),
        (("img2dataset", "."), "holds no shards"),
        (
            ("hf", "empty", "--subset", "train"),
            "holds neither state.json nor parquet files: check it, or shard the metadata",
        ),
        (("hf", ".", "--subset", "a.parquet,train"), "has no split 'train': give --subset one of a.parquet"),
        (("hf", "a.parquet", "--subset", "train"), "has no splits to choose among"),
        (("hf", "a.parquet"), "not a readable Arrow or parquet"),
    ],
)
def test_options_that_do_not_fit_the_source_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str], argv: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("a.json", "a.parquet"):
        put(tmp_path / name, b"{}")
    assert said in fails("shard", *argv, "--out", tmp_path / "out")


def test_only_the_chosen_karpathy_subsets_are_read(tmp_path: Path) -> None:
    sample = SAMPLES["karpathy-coco"](tmp_path / "in")
    run("shard", *sample.argv, "--subset", "train,restval", "--out", tmp_path / "out", "--workers", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["57870", "522418"]
    assert json.loads((tmp_path / "out/yield.json").read_text())["read"] == 2


def test_img2dataset_failures_keep_their_status(tmp_path: Path) -> None:
    sample = SAMPLES["img2dataset-webdataset"](tmp_path / "in")
    folder = tmp_path / "in/cc3m"
    cut = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(cut[: len(cut) // 2])
    write_status(
        folder / "00002.parquet", [status_row("000000008"), status_row("000000009") | {"status": "failed_to_resize"}]
    )
    write_img2dataset_tar(folder / "00003.tar", [status_row("000000010")])
    run("shard", *sample.argv, "--out", tmp_path / "out", "--workers", 1, "--tolerate", 1)
    reasons = quarantine(tmp_path / "out")
    cut_key = reasons.keys() & {"000000004", "000000005"}
    assert len(cut_key) >= 1
    assert reasons["000000001"] == "download failed (HTTP 404)"
    assert reasons["000000003"] == "download failed"
    assert reasons["000000008"] == "image is missing"
    assert reasons["000000009"] == "img2dataset could not resize it"
    assert reasons[""] == "the shard's table of statuses is missing"
    lines = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    failed = next(line for line in lines if line["key"] == "000000003")
    assert failed["detail"] == "<urlopen error [Errno -2] Name not known>: https://cdn.example.org/000000003.jpg"
    assert failed["where"] == "00000:000000003"
    assert "tar is cut short or damaged from here on" in [line["reason"] for line in lines]
    assert "000000010" in [row["key"] for row in read_rows(tmp_path / "out")]

    # After everything has been downloaded again, nothing is listed any more and nothing comes twice.
    rows = [row | status_row(row["key"]) for row in img2dataset_rows()]
    for shard, part in (("00000", rows[:4]), ("00001", rows[4:])):
        write_status(folder / f"{shard}.parquet", part)
        write_img2dataset_tar(folder / f"{shard}.tar", part)
    write_status(folder / "00002.parquet", [status_row("000000008"), status_row("000000009")])
    write_img2dataset_tar(folder / "00002.tar", [status_row("000000008"), status_row("000000009")])
    write_status(folder / "00003.parquet", [status_row("000000010")])
    run("retry", tmp_path / "out", "--workers", 1)
    assert quarantine(tmp_path / "out") == {}
    keys = [row["key"] for row in read_rows(tmp_path / "out")]
    assert sorted(keys) == [f"{n:09d}" for n in (0, 1, 2, 3, 4, 5, 8, 9, 10)]
    run("verify", tmp_path / "out", "--workers", 1)


def test_hf_rows_without_bytes_are_read_from_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "secret.jpg", photo(66))
    put(tmp_path / "set/beside.jpg", photo(9))
    table = hf_table([0, 1, 2, 3], pa.string())
    images = [{"bytes": None, "path": path} for path in ("beside.jpg", "../secret.jpg", "gone.jpg")]
    column = pa.array([*images, None], table.schema.field("image").type)
    pq.write_table(table.set_column(0, "image", column), tmp_path / "set/train.parquet")
    run("shard", "hf", tmp_path / "set/train.parquet", "--out", tmp_path / "out", "--workers", 1, "--tolerate", 1)
    assert [row["image"] for row in read_rows(tmp_path / "out")] == [photo(9)]
    assert list(quarantine(tmp_path / "out").values()) == [
        "image path leaves the folder",
        "image is missing",
        "image is missing",
    ]


def test_an_hf_file_cut_short_gives_its_intact_rows(tmp_path: Path) -> None:
    write_saved(tmp_path / "saved", [hf_table([0, 1, 2, 3, 4, 5], pa.string())])
    arrow = tmp_path / "saved/data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:-1500])
    run("shard", "hf", tmp_path / "saved", "--out", tmp_path / "cut", "--workers", 1, "--tolerate", 1)
    assert len(read_rows(tmp_path / "cut")) == 4
    assert quarantine(tmp_path / "cut") == {"": "file is cut short or damaged from here on"}


def test_hf_folders_of_one_name_and_an_unknown_column_are_one_sentence(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    two = (tmp_path / "set", tmp_path / "copy/set")
    for folder in two:
        folder.mkdir(parents=True)
        pq.write_table(hf_table([0], pa.string()), folder / "train.parquet")
    assert "same name" in fails("shard", "hf", *two, "--out", tmp_path / "no")
    said = fails("shard", "hf", tmp_path / "set", "--out", tmp_path / "no", "--caption-column", "words")
    assert "image, caption, sha" in said
    assert "--caption-column" in said


def test_hf_objects_are_kept_and_images_of_other_columns_are_not(tmp_path: Path) -> None:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    further = {"bytes": photo(1), "path": "1.jpg"}
    columns = {
        "image": pa.array([{"bytes": photo(0), "path": None}], image),
        "caption": pa.array(["a cat"]),
        "thumbnail": pa.array([further], image),
        "views": pa.array([[further]], pa.list_(image)),
        "licence": pa.array([{"name": "MIT", "years": [2020, 2021]}]),
    }
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    options = ("--image-column", "image", "--workers", 1)
    run("shard", "hf", tmp_path / "set.parquet", "--out", tmp_path / "out", *options)
    meta = pq.read_table(tmp_path / "out/000000.meta.parquet")
    assert meta["licence"].to_pylist() == ['{"name": "MIT", "years": [2020, 2021]}']
    assert not {"thumbnail", "views"} & set(meta.column_names)
