"""Every command that writes shards writes row indexes; `verify` and `stats` say what is unchecked without them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from made import read_rows, run, write_folder
from made_corpus import caption_rows, write_corpus
from PIL import Image

from data_tools.__main__ import main
from mvlm.data.shards.schema import read_manifest


def verified(corpus: Path, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What `verify` prints when it must exit with `code`: its errors if that is not 0."""
    capsys.readouterr()
    assert main(["verify", str(corpus), "--workers", "1"]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def flip_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_checksum_of_a_shrunk_image_is_that_of_its_stored_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 6)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "shrunk", "--longest-side", 16)
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "unchanged")
    for row, original in zip(read_rows(tmp_path / "shrunk"), read_rows(tmp_path / "unchanged"), strict=True):
        assert max(Image.open(io.BytesIO(row["image"])).size) == 16
        assert row["crc32"] == zlib.crc32(row["image"]) != zlib.crc32(original["image"])


def test_every_command_that_writes_shards_writes_their_indexes(corpus: Path, tmp_path: Path) -> None:
    run("merge", corpus, "--out", tmp_path / "merged")
    run("split", corpus, "--split", "a=0.5,b=0.5", "--out", tmp_path / "split")
    run("synth", "--task", "vqa", "--count", 12, "--out", tmp_path / "made")
    for folder in corpus, tmp_path / "merged", tmp_path / "split/a", tmp_path / "split/b", tmp_path / "made":
        manifest = read_manifest(folder)
        assert manifest.shards.unindexed == 0
        named = [shard.index.file for shard in manifest.shards if shard.index]
        assert sorted(path.name for path in folder.glob("*.index")) == named
        written = [path.read_bytes() for path in sorted(folder.glob("*.index"))]
        for path in folder.glob("*.index"):
            path.unlink()
        run("row-index", folder)
        assert [path.read_bytes() for path in sorted(folder.glob("*.index"))] == written


def test_verify_finds_a_changed_caption_and_a_changed_index(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, index = corpus / "000000.arrow", corpus / "000000.index"
    whole = shard.read_bytes()
    flip_bit(shard, whole.index(read_rows(corpus)[1]["captions"][0].encode()))
    error = verified(corpus, 1, capsys)
    assert "row 1 (r1): its texts are not those that were written" in error and error.count("\n") == 2
    shard.write_bytes(whole)
    flip_bit(index, index.stat().st_size - 2)
    error = verified(corpus, 1, capsys)
    assert "000000.index has changed" in error and "row-index" in error and error.count("\n") == 1
    index.unlink()
    assert "000000.index is missing" in verified(corpus, 1, capsys)
    assert main(["row-index", str(corpus)]) == 0
    assert "1 row index written" in capsys.readouterr().out
    assert "intact" in verified(corpus, 0, capsys)
    shutil.copy(index, corpus / "stray.index")
    assert "stray.index is not named" in verified(corpus, 1, capsys)


def test_verify_and_stats_say_in_how_many_shards_texts_are_not_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_corpus(tmp_path / "old", caption_rows(12))

    def stats() -> tuple[str, int]:
        """The text, and the number of shards without an index as JSON gives it."""
        capsys.readouterr()
        run("stats", folder)
        text = capsys.readouterr().out
        run("stats", folder, "--json")
        return text, json.loads(capsys.readouterr().out)["shards_without_index"]

    assert "texts of 3 shards are not checked" in verified(folder, 0, capsys)
    text, unindexed = stats()
    assert "texts of 3 shards are not checked" in text and unindexed == 3
    run("row-index", folder)
    assert "not checked" not in verified(folder, 0, capsys)
    text, unindexed = stats()
    assert "not checked" not in text and unindexed == 0


def test_on_a_read_only_disk_indexing_a_copy_is_suggested(
    mount_disk: Callable[[str], Path], fails: Callable[..., str]
) -> None:
    disk = mount_disk("3m")
    write_corpus(disk / "old", caption_rows(12))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    error = fails("row-index", disk / "old")
    assert error.endswith("/old cannot be written (Read-only file system): work on a copy of it elsewhere.\n")


def test_a_file_url_is_indexed_and_any_other_url_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_corpus(tmp_path / "old", caption_rows(12))
    run("row-index", f"file://{tmp_path}/old")
    assert read_manifest(tmp_path / "old").shards.unindexed == 0
    assert "memory://shards/old is a URL" in fails("row-index", "memory://shards/old")
