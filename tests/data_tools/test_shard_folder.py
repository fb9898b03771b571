"""Folders, and tars of folders, to shards: what is kept is kept exactly, and what is dropped is listed."""

from __future__ import annotations

import json
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from made import photo, quarantine, read_rows, run, tree, write_captions, write_folder

from data_tools.__main__ import main
from mvlm.data.shards.integrity import check_lengths
from mvlm.data.shards.schema import SCHEMA, read_manifest

FILES = [
    "000000.arrow",
    "000000.index",
    "000000.meta.parquet",
    "manifest.json",
    "quarantine.jsonl",
    "source.json",
    "yield.json",
    "yield.txt",
]


def test_every_field_is_kept(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", 7)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    rows = read_rows(tmp_path / "out")
    assert [row["key"] for row in rows] == [record["id"] for record in records]
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        data = (tmp_path / "in" / record["image"]).read_bytes()
        assert row["image"] == data
        assert row["captions"] == record["captions"]
        assert row["source"] == "made"
        assert (row["width"], row["height"]) == (24 + number, 18)
        assert row["crc32"] == zlib.crc32(data)


def test_manifest_agrees_with_the_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 9)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--shard-mb", 0.002, "--workers", 1)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert len(manifest["shards"]) > 2
    for shard in manifest["shards"]:
        data = (tmp_path / "out" / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["blake3"]) == (len(data), blake3(data).hexdigest())
    rows = read_rows(tmp_path / "out")
    assert manifest["rows"] == len(rows) == sum(shard["rows"] for shard in manifest["shards"])
    assert manifest["captions"] == sum(len(row["captions"]) for row in rows)
    assert manifest["image_bytes"] == sum(len(row["image"]) for row in rows)
    check_lengths(tmp_path / "out", read_manifest(tmp_path / "out").shards)


def test_shards_are_uncompressed_files_of_the_schema_with_several_batches(tmp_path: Path) -> None:
    import pyarrow as pa

    run("synth", "--task", "caption", "--count", 600, "--out", tmp_path / "out")
    reader = pa.ipc.open_file(tmp_path / "out/000000.arrow")
    assert reader.schema == SCHEMA
    assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [256, 256, 88]
    image = reader.get_batch(0)["image"][17].as_py()
    assert image in (tmp_path / "out/000000.arrow").read_bytes()


def test_the_bytes_depend_on_neither_the_workers_nor_the_output_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 80)
    (tmp_path / "in/images/3.jpg").write_bytes(b"<html>404</html>")
    for name, workers in (("one", 1), ("elsewhere/two", 2)):
        run("shard", "folder", tmp_path / "in", "--out", tmp_path / name, "--workers", workers, "--shard-mb", 0.02)
    files = tree(tmp_path / "one")
    assert files == tree(tmp_path / "elsewhere/two")
    origin = json.loads(files.pop("source.json"))
    assert origin["paths"] == [str(tmp_path / "in")]  # as the user typed it, and only there
    assert str(tmp_path).encode() not in b"".join(files.values())


def test_a_tar_of_the_folder_gives_the_same_rows(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 5)
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "in", "photos")
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "a")
    run("shard", "folder", tmp_path / "in.tar", "--out", tmp_path / "b")
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b")


def test_each_bad_record_is_listed_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", 14)
    images = tmp_path / "in/images"
    (tmp_path / "secret.jpg").write_bytes(photo(99))
    (images / "0.jpg").write_bytes(b"<!doctype html><title>Not found</title>")
    (images / "1.jpg").write_bytes(photo(1)[:-200])
    (images / "2.jpg").unlink()
    (images / "3.jpg").unlink()
    (images / "3.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "4.jpg").write_bytes(b"")
    os.mkfifo(images / "pipe")
    records[5]["image"] = "../secret.jpg"
    records[6]["image"] = str(tmp_path / "secret.jpg")
    records[7]["image"] = "images/pipe"
    records[8]["captions"] = ["", "  \n", None]
    records[9]["id"] = "r10"
    del records[11]["captions"]
    write_captions(tmp_path / "in", records)
    with (tmp_path / "in/captions.jsonl").open("ab") as file:
        file.write(b'{"id": "cut", "image": \n["no", "object"]\n{"id": "\xff\xfe"}\n\n')
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--tolerate", 0.9)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["r10", "r12", "r13"]
    reasons = quarantine(tmp_path / "out")
    del reasons[""]
    assert reasons == {
        "r0": "not an image",
        "r1": "image is damaged",
        "r2": "image is missing",
        "r3": "image path leaves the folder",
        "r4": "image is empty",
        "r5": "image path leaves the folder",
        "r6": "image path leaves the folder",
        "r7": "image is not a file",
        "r8": "no caption",
        "r10": "duplicate id",
        "r11": "no caption",
    }
    found = json.loads((tmp_path / "out/yield.json").read_text())
    assert (found["read"], found["kept"], sum(found["dropped"].values())) == (17, 3, 14)
    assert found["dropped"]["line is not JSON in UTF-8"] == 2


def test_an_empty_id_and_an_empty_path_count_as_none(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", 4)
    records[0]["id"], records[1]["id"], records[2]["image"] = " ", "a\nb", ""
    write_captions(tmp_path / "in", records)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1, "--tolerate", 1)
    assert quarantine(tmp_path / "out") == {" ": "no id", "a\nb": "id is not plain text", "r2": "no image path"}


def test_captions_are_cleaned_and_the_dropped_ones_counted(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", 1)
    records[0]["captions"] = [" a\tdog\x00\r\non  grass ", "\x07", "", None, 7, "bad \ud800", "café 👩‍🚀"]
    write_captions(tmp_path / "in", records)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert read_rows(tmp_path / "out")[0]["captions"] == ["a dog on grass", "café 👩‍🚀"]
    found = json.loads((tmp_path / "out/yield.json").read_text())
    assert found["dropped_captions"] == {"caption is empty": 2, "caption is not UTF-8": 1, "caption is not text": 2}


def test_splits_share_no_group_whatever_the_order_of_the_records(tmp_path: Path) -> None:
    records = write_folder(tmp_path / "in", 60, group=lambda number: f"g{number % 20}", year=lambda number: number % 3)
    split = ("--split", "train=0.7,eval=0.3", "--split-by", "group", "--workers", 1)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", *split)
    write_captions(tmp_path / "in", records[::-1])
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "reversed", *split)
    group = {record["id"]: record["group"] for record in records}
    keys = {name: {row["key"] for row in read_rows(tmp_path / "out" / name)} for name in ("train", "eval")}
    assert len(keys["train"]) + len(keys["eval"]) == 60
    assert {group[key] for key in keys["train"]}.isdisjoint(group[key] for key in keys["eval"])
    for name in keys:
        assert {row["key"] for row in read_rows(tmp_path / "reversed" / name)} == keys[name]


def test_a_field_that_names_no_split_is_listed_with_its_value(tmp_path: Path) -> None:
    folds: list[Any] = [0, 1, 2, [0], "1", None]
    write_folder(tmp_path / "in", 6, fold=folds.__getitem__)
    split = ("--split", "0,1", "--split-by", "fold", "--tolerate", 1)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1, *split)
    assert [row["key"] for row in read_rows(tmp_path / "out/1")] == ["r1", "r4"]
    listed = map(json.loads, (tmp_path / "out/quarantine.jsonl").read_text().splitlines())
    assert {entry["key"]: (entry["reason"], entry["detail"]) for entry in listed} == {
        "r2": ("field names none of the splits", "fold is '2'"),
        "r3": ("field names none of the splits", "fold is '[0]'"),
        "r5": ("no field to split by", "fold"),
    }


def test_what_cannot_be_sharded_is_one_sentence(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_folder(tmp_path / "good", 3)
    out = ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "none/captions.jsonl").write_text("\n")
    (tmp_path / "cut.tar").write_bytes(b"nothing like a tar" * 100)
    assert "nowhere" in fails("shard", "folder", tmp_path / "nowhere", *out)
    assert "captions.jsonl" in fails("shard", "folder", tmp_path / "empty", *out)
    assert "no records" in fails("shard", "folder", tmp_path / "none", *out)
    assert "cut.tar" in fails("shard", "folder", tmp_path / "cut.tar", *out)
    assert "adds up to" in fails("shard", "folder", tmp_path / "good", *out, "--split", "train=0.5,eval=0.4")
    split = ("--split", "a=0.5,b=0.5", "--split-by", "nonesuch")
    assert "no field to split by" in fails("shard", "folder", tmp_path / "good", *out, *split)
    assert not (tmp_path / "out").exists()


def test_too_many_bad_records_is_an_error_that_lists_them(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_folder(tmp_path / "in", 4)
    for number in (0, 2):
        (tmp_path / f"in/images/{number}.jpg").write_bytes(b"no image")
    shard = ("shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert "2 of 4" in fails(*shard, "--tolerate", 0.4)
    assert not (tmp_path / "out").exists()
    listed = [json.loads(line)["key"] for line in (tmp_path / "out.quarantine.jsonl").read_text().splitlines()]
    assert listed == ["r0", "r2"]
    run(*shard, "--tolerate", 0.5)


def test_finished_shards_are_never_overwritten(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_folder(tmp_path / "in", 3)
    shard = ("shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    run(*shard)
    before = tree(tmp_path / "out")
    assert "already holds shards" in fails(*shard)
    assert tree(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    assert "other files" in fails("shard", "folder", tmp_path / "in", "--out", tmp_path / "mine")


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 3)
    (tmp_path / ".out.partial/train").mkdir(parents=True)
    (tmp_path / ".out.partial/000007.arrow").write_bytes(b"half")
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "out")
    assert sorted(tree(tmp_path / "out")) == sorted(FILES)
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("argv", [["shard", "folder", "x"], [], ["--bad"]])
def test_wrong_usage_exits_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["shard", "count"])
def test_a_command_that_names_no_source_is_answered_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "my pictures", 1)
    out = ["--out", "out"] if command == "shard" else []
    for argv in ([command, "my pictures", *out], [command], [command, "nothing"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
    assert f"Name the kind of my pictures first: `mvlm-data {command} folder 'my pictures'`." in caplog.text


def test_an_unknown_source_is_answered_with_the_known_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["shard", "nonesuch", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "There is no source nonesuch: give one of coco, " in caplog.text


def test_the_bundled_emoji_are_split_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # outside the checkout, where the path that the help and the docs give must work too
    split = ("--split", "train=0.88,eval=0.12", "--split-by", "group", "--workers", 1)
    run("shard", "folder", "examples/emoji.tar", "--out", tmp_path / "emoji", *split)
    train, held_out = (read_rows(tmp_path / "emoji" / name) for name in ("train", "eval"))
    assert len(train) + len(held_out) == 1851
    assert len(held_out) >= 200
