"""`split` puts each row where sharding with --split would have put it, and keeps together what belongs together."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from made import read_rows, run, tree, write_folder
from made_corpus import caption_rows, write_corpus


def test_splitting_later_gives_the_bytes_of_sharding_with_the_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 40, group=lambda number: f"lane {number // 5}")
    shard = ["shard", "folder", tmp_path / "in", "--workers", 1]
    run(*shard, "--out", tmp_path / "whole")
    for column in ("key", "group"):
        split = ["--split", "train=0.7,eval=0.3", "--split-by", column]
        run(*shard, *split, "--out", tmp_path / f"sharded by {column}")
        run("split", tmp_path / "whole", *split, "--out", tmp_path / f"split by {column}")
        for name in ("train", "eval"):
            later = tree(tmp_path / f"split by {column}" / name)
            assert {"000000.arrow", "000000.index", "000000.meta.parquet", "manifest.json"} == later.keys()
            assert later == tree(tmp_path / f"sharded by {column}" / name)


def test_a_row_without_the_column_to_split_by_is_named(fails: Callable[..., str], tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 4, group=lambda number: "lane" if number < 3 else None)
    run("shard", "folder", tmp_path / "in", "--workers", 1, "--out", tmp_path / "c")
    argv = ["split", tmp_path / "c", "--split", "a=0.5,b=0.5", "--out", tmp_path / "out", "--split-by"]
    said = fails(*argv, "group")
    assert "has the row r3, which has no 'group' to split by: give a column that every row has." in said
    assert "no column 'image' to split by: give one of key, captions, source," in fails(*argv, "image")


def test_no_row_is_lost_and_the_order_is_kept(tmp_path: Path) -> None:
    rows = caption_rows(60)
    write_corpus(tmp_path / "c", rows)
    run("split", tmp_path / "c", "--split", "a=0.5,b=0.3,c=0.2", "--out", tmp_path / "out", "--shard-mb", 0.01)
    parts = [read_rows(tmp_path / "out" / name) for name in "abc"]
    order = {row["key"]: number for number, row in enumerate(rows)}
    for part in parts:
        numbers = [order[row["key"]] for row in part]
        assert numbers == sorted(numbers)
    assert sorted((row for part in parts for row in part), key=lambda row: order[row["key"]]) == rows
    run("verify", tmp_path / "out", "--workers", 1)


@pytest.mark.parametrize(("task", "column"), [("vqa", "crc32"), ("pairs", "group"), ("entailment", "crc32")])
def test_rows_with_the_same_image_stay_together(task: str, column: str, tmp_path: Path) -> None:
    run("synth", "--task", task, "--count", 400, "--out", tmp_path / "c")
    argv = ["split", tmp_path / "c", "--split", "a=0.5,b=0.5", "--split-by", column]
    run(*argv, "--out", tmp_path / "out")
    a, b = ({row["image"] for row in read_rows(tmp_path / "out" / name)} for name in "ab")
    assert a and b and a.isdisjoint(b)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    image = bytes(1_000_000)
    rows = caption_rows(1, image=image, crc32=zlib.crc32(image)) * 100
    corpus = write_corpus(tmp_path / "c", [row | {"key": f"k{number}"} for number, row in enumerate(rows)])
    held = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        run("split", corpus, "--split", "a=0.5,b=0.5", "--out", tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 45e6, "the corpus has 100 MB of images"
    assert pa.total_allocated_bytes() - held < 45e6


def test_splits_named_by_a_column_must_take_every_row_and_none_may_be_empty(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "c", [row | {"source": "abc"[n % 3]} for n, row in enumerate(caption_rows(6))])
    split = ["split", corpus, "--out", tmp_path / "out"]
    by_source = [*split, "--split-by", "source", "--split"]
    said = fails(*by_source, "a,b")
    assert "has the row k2, whose field names none of the splits: source is 'c': name all splits." in said
    assert "field names none of the splits" in fails(*split, "--split-by", "captions", "--split", "a,b")
    assert "into the split 'd': leave it out, or fix what source says." in fails(*by_source, "a,b,c,d")
    run(*by_source, "a,b,c")
    assert [row["key"] for row in read_rows(tmp_path / "out/c")] == ["k2", "k5"]


def test_a_split_that_fails_leaves_nothing_behind(fails: Callable[..., str], tmp_path: Path) -> None:
    rows = caption_rows(9)
    corpus = write_corpus(tmp_path / "c", rows)
    argv = ["split", corpus, "--out", tmp_path / "out", "--split"]
    assert "no column 'group'" in fails(*argv, "a=0.5,b=0.5", "--split-by", "group")
    assert "'image'" in fails(*argv, "a=0.5,b=0.5", "--split-by", "image")
    assert "no row fell into the split 'b'" in fails(*argv, "a=0.999,b=0.001")
    assert "adds up" in fails(*argv, "a=0.5")
    path = corpus / "000001.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(rows[6]["image"]) + 50] ^= 1
    path.write_bytes(data)
    assert "row 6 (k6) has changed" in fails(*argv, "a=0.5,b=0.5")
    path.unlink()
    assert "is missing" in fails(*argv, "a=0.5,b=0.5")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
