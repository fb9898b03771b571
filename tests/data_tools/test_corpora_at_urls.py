"""The commands that read shards read them at URLs and behind patterns as they do in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from made import read_rows, run, tree, write_folder

from data_tools.__main__ import main
from data_tools.reshape import retry_at_url
from mvlm.config.places import expanded
from tests.data.http_store import Store


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A corpus with two splits, here and at memory://shards."""
    write_folder(tmp_path / "in", 12)
    split = ("--split", "train=0.6,eval=0.4", "--shard-mb", 0.004, "--workers", 1)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "shards", *split)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "shards"), "/shards", recursive=True)
    return tmp_path / "shards"


def test_they_say_and_make_the_same(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = [read_rows(shards / name) for name in ("eval", "train")]
    for place in ("memory://shards", "memory://shards/e*", f"{shards}/ev*"):
        run("verify", place, "--workers", 1)
        assert f"/eval: {len(here[0])} rows" in capsys.readouterr().out, place
    said = []
    for place in (shards, f"{shards}/*", f"file://{shards}", "memory://shards", "memory://shards/*"):
        run("stats", place, "--json")
        found = json.loads(capsys.readouterr().out)
        for of_corpus in found.values():
            del of_corpus["neighbours"]  # an order's, which depends on the disk that a folder lies on
        said.append(found)
    assert said == 5 * [said[0]] and set(said[0]) == {"train", "eval"}
    run("merge", "memory://shards", "--out", tmp_path / "merged")
    assert read_rows(tmp_path / "merged") == here[0] + here[1]
    run("split", "memory://shards/tr*", "--split", "a=0.5,b=0.5", "--out", tmp_path / "split")
    assert sum(len(read_rows(tmp_path / "split" / name)) for name in "ab") == len(here[1])
    named = expanded(["memory://shards/[et]*", "https://host/a?b"])
    assert named == ("memory://shards/eval", "memory://shards/train", "https://host/a?b")
    for place, rows in (("memory://shards", 12), ("memory://shards/tr*", len(here[1])), (f"{shards}/*", 12)):
        sheet = tmp_path / f"{rows}{place[0]}.html"
        run("preview", place, "--out", sheet)
        assert sheet.read_text().count("<figure>") == rows, place


def test_an_http_server_that_lists_its_folders_is_read_like_any_store(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Store(tmp_path)
    server.start()
    try:
        rows = {name: len(read_rows(shards / name)) for name in ("eval", "train")}
        for place in (f"{server.url}/shards", f"{server.url}/shards/*"):
            run("verify", place, "--workers", 1)
            said = capsys.readouterr().out
            assert all(f"/shards/{name}: {count} rows" in said for name, count in rows.items()), place
        run("merge", f"{server.url}/shards/train", "--out", tmp_path / "merged")
    finally:
        server.stop()
    assert read_rows(tmp_path / "merged") == read_rows(shards / "train")


def test_what_is_made_of_corpora_can_be_written_to_urls(
    shards: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    run("merge", "memory://shards", "--out", "memory://made/merged")
    run("merge", shards, "--out", tmp_path / "merged")
    run("split", "memory://made/merged", "--split", "a=0.5,b=0.5", "--out", "memory://made/split")
    run("split", tmp_path / "merged", "--split", "a=0.5,b=0.5", "--out", tmp_path / "split")
    fsspec.filesystem("memory").get("/made", str(tmp_path / "made"), recursive=True)
    for name in ("merged", "split"):
        assert tree(tmp_path / "made" / name) == tree(tmp_path / name)
    assert "already holds shards" in fails("merge", shards, "--out", "memory://made/merged")
    both = fails("split", "memory://shards/*", "--split", "a=0.5,b=0.5", "--out", tmp_path / "both")
    assert "memory://shards/* names 2 corpora" in both


def test_keys_are_prefixed_with_the_names_that_the_corpora_have_there(
    shards: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    fsspec.filesystem("memory").put(str(shards / "train"), "/more/train", recursive=True)
    run("merge", "memory://shards/train", "memory://more/train", "--prefix-keys", "--out", tmp_path / "both")
    names = ("shards/train", "more/train")
    expected = [f"{name}/{row['key']}" for name in names for row in read_rows(shards / "train")]
    assert [row["key"] for row in read_rows(tmp_path / "both")] == expected
    twice = ["memory://more/train"] * 2
    assert "names a corpus twice" in fails("merge", *twice, "--prefix-keys", "--out", tmp_path / "twice")


def test_rows_of_all_splits_are_taken_down(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fsspec.filesystem("memory").put(str(shards), "/lessened", recursive=True)
    keys = [read_rows(shards / name)[0]["key"] for name in ("train", "eval")]
    (tmp_path / "list").write_text("\n".join([*keys, "nowhere"]))
    run("takedown", "memory://lessened", "--list", tmp_path / "list")
    said = capsys.readouterr().out
    assert all(f"memory://lessened/{name}: 1 rows are taken down" in said for name in ("train", "eval"))
    assert said.endswith("\n1 of 3 lines name no row: nowhere\n")


@pytest.mark.parametrize("killed", [False, True])
def test_a_retry_at_a_url_gives_what_it_gives_in_a_folder(
    tmp_path: Path, killed: bool, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """Also if it was killed when all was there but in its place."""
    write_folder(tmp_path / "in", 12)
    (tmp_path / "in/images/5.jpg").rename(tmp_path / "away")
    out, url = tmp_path / "out", f"memory://retried-{killed}/out"
    files = fsspec.filesystem("memory")
    run("shard", "folder", tmp_path / "in", "--out", out, "--split", "train=0.6,eval=0.4", "--workers", 1)
    files.put(str(out), f"/retried-{killed}/out", recursive=True)
    (tmp_path / "away").rename(tmp_path / "in/images/5.jpg")
    run("retry", out, "--workers", 1)
    if killed:
        monkeypatch.setattr(retry_at_url, "_put_in_place", lambda storage: None)
        run("retry", url, "--workers", 1)
        assert files.exists(f"/retried-{killed}/out/.retry.json")
        monkeypatch.undo()
    run("retry", f"memory://retried-{killed}/o*", "--workers", 1)
    assert f": {url}/train holds no source.json" in fails("retry", f"{url}/train")
    files.get(f"/retried-{killed}/out", str(tmp_path / "fetched"), recursive=True)
    assert tree(tmp_path / "fetched") == tree(out)
    assert len(read_rows(out / "train") + read_rows(out / "eval")) == 12


def test_what_lies_at_a_url_is_excluded(shards: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    for number, place in enumerate(("memory://shards/eval", "memory://shards/e*", f"{shards}/[ef]*")):
        left = tmp_path / f"left-{number}"
        run("shard", "folder", tmp_path / "in", "--exclude", place, "--out", left, "--workers", 1)
        assert read_rows(left) == read_rows(shards / "train"), place
    assert "memory://none holds no manifest.json" in fails("verify", "memory://none")
    files = fsspec.filesystem("memory")
    damaged = next(path for path in files.find("/shards/train") if path.endswith(".arrow"))
    files.pipe_file(damaged, files.cat_file(damaged)[:-9] + b"arrow1234")
    assert main(["verify", "memory://shards/train", "--workers", "1"]) == 1
