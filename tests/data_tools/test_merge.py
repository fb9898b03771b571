"""Merging keeps every row and adds none, and reports equal keys before it copies anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made import read_rows, run, tree, write_folder
from made_corpus import caption_rows, write_corpus

import data_tools.reshape.merge


def test_rows_are_kept_in_order_and_shards_are_linked(tmp_path: Path) -> None:
    a, b = caption_rows(12, "a"), caption_rows(8, "b")
    write_corpus(tmp_path / "a", a)
    write_corpus(tmp_path / "b", b)
    run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert read_rows(tmp_path / "out") == a + b
    shards = sorted((tmp_path / "a").glob("*.arrow")) + sorted((tmp_path / "b").glob("*.arrow"))
    merged = sorted((tmp_path / "out").glob("*.arrow"))
    assert [path.stat().st_ino for path in merged] == [path.stat().st_ino for path in shards]
    run("verify", tmp_path / "out", "--workers", 1)


def test_merging_one_corpus_copies_its_bytes_and_merging_splits_keeps_all_rows(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 30)
    shard = ["shard", "folder", tmp_path / "in", "--workers", 1]
    run(*shard, "--out", tmp_path / "whole")
    run("merge", tmp_path / "whole", "--out", tmp_path / "copy")
    merged = ("manifest.json", ".arrow", ".index", ".meta.parquet")
    expected = {name: content for name, content in tree(tmp_path / "whole").items() if name.endswith(merged)}
    assert tree(tmp_path / "copy") == expected
    run(*shard, "--split", "a=0.5,b=0.5", "--out", tmp_path / "parts")
    run("merge", tmp_path / "parts", "--out", tmp_path / "again")
    both = read_rows(tmp_path / "parts/a") + read_rows(tmp_path / "parts/b")
    assert read_rows(tmp_path / "again") == both


def test_equal_keys_are_an_error_unless_they_are_prefixed(fails: Callable[..., str], tmp_path: Path) -> None:
    rows = caption_rows(12)
    write_corpus(tmp_path / "x/train", rows)
    write_corpus(tmp_path / "y/train", caption_rows(3, "other") + rows[7:])
    both = [tmp_path / "x/train", tmp_path / "y/train"]
    error = fails("merge", *both, "--out", tmp_path / "out")
    assert "'k7'" in error
    assert "--prefix-keys" in error
    assert not (tmp_path / "out").exists()
    run("merge", *both, "--prefix-keys", "--out", tmp_path / "out")
    keys = [row["key"] for row in read_rows(tmp_path / "out")]
    assert len(set(keys)) == len(keys) == 20
    assert (keys[0], keys[-1]) == ("x/train/k0", "y/train/k11")
    run("verify", tmp_path / "out", "--workers", 1)


def test_equal_hashes_of_different_keys_do_not_matter(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All keys collide here; with 64-bit hashes, different keys hardly ever do."""
    monkeypatch.setattr(data_tools.reshape.merge, "_hash", lambda key: 7)
    write_corpus(tmp_path / "a", caption_rows(4, "a"))
    write_corpus(tmp_path / "b", caption_rows(4, "b"))
    run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert len(read_rows(tmp_path / "out")) == 8
    assert "'a0'" in fails("merge", tmp_path / "out", tmp_path / "a", "--out", tmp_path / "again")


def test_different_tasks_and_a_corpus_named_twice_are_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    run("synth", "--task", "foils", "--count", 6, "--out", tmp_path / "foils")
    run("synth", "--task", "caption", "--count", 6, "--out", tmp_path / "captions")
    assert "different tasks" in fails("merge", tmp_path / "foils", tmp_path / "captions", "--out", tmp_path / "out")
    twice = [tmp_path / "foils", tmp_path / "captions/../foils", "--prefix-keys"]
    assert "twice" in fails("merge", *twice, "--out", tmp_path / "out")
    run("merge", tmp_path / "foils", "--out", tmp_path / "copy")
    assert read_rows(tmp_path / "copy") == read_rows(tmp_path / "foils")
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_not_merged(fails: Callable[..., str], tmp_path: Path) -> None:
    rows = caption_rows(9)
    corpus = write_corpus(tmp_path / "c", rows)
    path = corpus / "000001.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(rows[6]["image"]) + 50] ^= 1
    path.write_bytes(data)
    assert "000001.arrow has changed" in fails("merge", corpus, "--out", tmp_path / "out")
    assert "row 6 (k6) has changed" in fails("merge", corpus, "--prefix-keys", "--out", tmp_path / "out")
    path.write_bytes(data[:-10])
    assert "000001.arrow" in fails("merge", corpus, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_the_metadata_of_another_shard_and_damaged_metadata_are_not_merged(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    write_folder(tmp_path / "in", 30)
    corpus = tmp_path / "c"
    run("shard", "folder", tmp_path / "in", "--shard-mb", 0.005, "--workers", 1, "--out", corpus)
    table, *_, last = sorted(corpus.glob("*.meta.parquet"))
    intact = table.read_bytes()
    table.write_bytes(last.read_bytes())
    assert f"{table.name} has" in fails("merge", corpus, "--prefix-keys", "--out", tmp_path / "out")
    table.write_bytes(intact[:40] + bytes([intact[40] ^ 1]) + intact[41:])
    assert f"{table.name} has changed" in fails("merge", corpus, "--prefix-keys", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corpus_whose_rows_were_all_taken_down_is_not_merged(fails: Callable[..., str], tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", caption_rows(3))
    (tmp_path / "list").write_text("k0\nk1\nk2\n")
    run("takedown", tmp_path / "c", "--list", tmp_path / "list")
    assert "all rows were taken down" in fails("merge", tmp_path / "c", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
