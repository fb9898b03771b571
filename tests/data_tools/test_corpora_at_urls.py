"""Commands that read shards take URLs and patterns as they take folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from made import read_rows, run, tree, write_folder

from data_tools.__main__ import main
from data_tools.reshape import retry_at_url
from mvlm.config.places import expanded
from tests.data.http_store import Store


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Path]:
    """A corpus with two splits, in a local folder and at memory://shards."""
    write_folder(tmp_path / "in", 12)
    split = ("--split", "train=0.6,eval=0.4", "--shard-mb", 0.004, "--workers", 1)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "shards", *split)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "shards"), "/shards", recursive=True)
    yield tmp_path / "shards"
    files.rm("/shards", recursive=True)


def test_urls_and_patterns_give_what_folders_give(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eval_rows, train_rows = read_rows(shards / "eval"), read_rows(shards / "train")
    for place in ("memory://shards", "memory://shards/e*", f"{shards}/ev*"):
        run("verify", place, "--workers", 1)
        assert f"/eval: {len(eval_rows)} rows" in capsys.readouterr().out, place
    statistics = []
    for place in (shards, f"{shards}/*", f"file://{shards}", "memory://shards", "memory://shards/*"):
        run("stats", place, "--json")
        of_splits = json.loads(capsys.readouterr().out)
        assert of_splits.keys() == {"train", "eval"}
        for of_split in of_splits.values():
            del of_split["neighbours"]  # the default order depends on the disk that holds the folder
        statistics.append(of_splits)
    assert all(found == statistics[0] for found in statistics)
    run("merge", "memory://shards", "--out", tmp_path / "merged")
    assert read_rows(tmp_path / "merged") == eval_rows + train_rows
    run("split", "memory://shards/tr*", "--split", "a=0.5,b=0.5", "--out", tmp_path / "split")
    assert sum(len(read_rows(tmp_path / "split" / name)) for name in "ab") == len(train_rows)
    places = expanded(["memory://shards/[et]*", "https://host/a?b"])
    assert places == ("memory://shards/eval", "memory://shards/train", "https://host/a?b")
    previewed = {"memory://shards": 12, "memory://shards/tr*": len(train_rows), f"{shards}/*": 12}
    for number, (place, rows) in enumerate(previewed.items()):
        sheet = tmp_path / f"{number}.html"
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
            output = capsys.readouterr().out
            assert all(f"/shards/{name}: {count} rows" in output for name, count in rows.items()), place
        run("merge", f"{server.url}/shards/train", "--out", tmp_path / "merged")
    finally:
        server.stop()
    assert read_rows(tmp_path / "merged") == read_rows(shards / "train")


def test_merge_and_split_write_to_urls_what_they_write_to_folders(
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
    error = fails("split", "memory://shards/*", "--split", "a=0.5,b=0.5", "--out", tmp_path / "both")
    assert "memory://shards/* names 2 corpora" in error


def test_keys_are_prefixed_with_the_names_of_corpora_in_their_urls(
    shards: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    fsspec.filesystem("memory").put(str(shards / "train"), "/more/train", recursive=True)
    run("merge", "memory://shards/train", "memory://more/train", "--prefix-keys", "--out", tmp_path / "both")
    names = ("shards/train", "more/train")
    expected = [f"{name}/{row['key']}" for name in names for row in read_rows(shards / "train")]
    assert [row["key"] for row in read_rows(tmp_path / "both")] == expected
    twice = ["memory://more/train"] * 2
    assert "names a corpus twice" in fails("merge", *twice, "--prefix-keys", "--out", tmp_path / "twice")


def test_a_takedown_at_a_url_reaches_every_split(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec.filesystem("memory").put(str(shards), "/reduced", recursive=True)
    keys = [read_rows(shards / name)[0]["key"] for name in ("train", "eval")]
    (tmp_path / "list").write_text("\n".join([*keys, "nowhere"]))
    run("takedown", "memory://reduced", "--list", tmp_path / "list")
    output = capsys.readouterr().out
    assert all(f"memory://reduced/{name}: 1 row taken down" in output for name in ("train", "eval"))
    assert output.endswith("\n1 of 3 lines name no row: nowhere\n")


@pytest.mark.parametrize("killed", [False, True])
def test_a_retry_at_a_url_gives_what_one_in_a_folder_gives(
    tmp_path: Path, killed: bool, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """Even if an earlier one was killed once everything was uploaded but nothing was in its place yet."""
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


def test_a_corpus_at_a_url_can_be_excluded(shards: Path, tmp_path: Path) -> None:
    for number, place in enumerate(("memory://shards/eval", "memory://shards/e*", f"{shards}/[ef]*")):
        out = tmp_path / f"out-{number}"
        run("shard", "folder", tmp_path / "in", "--exclude", place, "--out", out, "--workers", 1)
        assert read_rows(out) == read_rows(shards / "train"), place


def test_verify_at_a_url_finds_a_missing_and_a_damaged_corpus(
    shards: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "memory://none holds no manifest.json" in fails("verify", "memory://none")
    files = fsspec.filesystem("memory")
    damaged = next(path for path in files.find("/shards/train") if path.endswith(".arrow"))
    files.pipe_file(damaged, files.cat_file(damaged)[:-9] + b"arrow1234")
    assert main(["verify", "memory://shards/train", "--workers", "1"]) == 1
    assert Path(damaged).name in capsys.readouterr().err
