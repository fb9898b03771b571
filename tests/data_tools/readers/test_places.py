"""Sources at URLs and given as patterns yield the same rows as local files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import photo, quarantine, read_rows, run, write_folder

from tests.tars import write_tar


def members(number: int) -> dict[str, bytes]:
    found = {}
    for key in range(3 * number, 3 * number + 3):
        found |= {f"{key:04d}.jpg": photo(key), f"{key:04d}.txt": b"noise %d" % key}
    return found


def write_sources(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Write data of four sources below `folder`, and return by source the paths to give, relative to it."""
    folder.mkdir()
    write_folder(folder / "photos", 3)
    (folder / "laion").mkdir()
    for number in range(3):
        write_tar(folder / f"{number}.tar", members(number).items())
    write_tar(folder / "laion/00000.tar", members(7).items())
    rows = {"key": ["0021", "0022", "0023", "0024"], "url": list("abcd"), "caption": list("abcd")}
    status = {"status": ["success"] * 3 + ["failed_to_download"], "error_message": [None] * 3 + ["HTTP Error 404: x"]}
    pq.write_table(pa.table(rows | status), folder / "laion/00000.parquet")
    images = [{"bytes": photo(number), "path": None} for number in range(5)]
    pq.write_table(pa.table({"image": images, "caption": list("abcde")}), folder / "train-0.parquet", row_group_size=2)
    return {"webdataset": ("*.tar",), "img2dataset": ("laion",), "hf": ("train-?.parquet",), "folder": ("photos",)}


def test_urls_and_patterns_give_the_rows_of_local_files(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    sources = write_sources(tmp_path / "in")
    files.put(str(tmp_path / "in"), "/in", recursive=True)
    for source, (pattern,) in sources.items():
        places = {
            "path": tmp_path / "in" / pattern,
            "file": f"file://{tmp_path}/in/{pattern}",
            "url": f"memory://in/{pattern}",
        }
        for name, place in places.items():
            options = ("--workers", 1, "--shard-mb", 0.003, "--tolerate", 1)
            run("shard", source, place, "--out", tmp_path / source / name, *options)
        rows = {name: read_rows(tmp_path / source / name) for name in places}
        assert len(rows["path"]) >= 3
        assert rows["path"] == rows["file"] == rows["url"]
        dropped = {name: quarantine(tmp_path / source / name) for name in places}
        assert dropped["path"] == dropped["file"] == dropped["url"]
        assert dropped["url"] == ({"0024": "download failed (HTTP 404)"} if source == "img2dataset" else {})
    names = {path.name for path in (tmp_path / "webdataset/url").glob("*.arrow")}
    assert {"000000.arrow", "000002.arrow"} <= names, "each tar must be a part"


def test_a_source_that_does_not_exist_is_one_sentence(tmp_path: Path, fails: Callable[..., str]) -> None:
    out = ("--out", tmp_path / "out")
    assert "Nothing matches" in fails("shard", "webdataset", tmp_path / "*.tar", *out)
    assert "Nothing matches memory://none/*.tar" in fails("shard", "webdataset", "memory://none/*.tar", *out)
    assert "There is nothing at memory://none/a.tar" in fails("shard", "webdataset", "memory://none/a.tar", *out)
    assert "copy memory://a.json here" in fails("shard", "coco", "memory://a.json", "--images", tmp_path, *out)


@pytest.mark.parametrize("keys", [("orig.jpg", "alt.txt"), ("small.jpg", "json"), ("png;small.jpg", "text")])
def test_images_and_captions_are_chosen_by_key(tmp_path: Path, keys: tuple[str, str]) -> None:
    images = {"orig.jpg": photo(1), "small.jpg": photo(2)}
    texts = {"alt.txt": b"alt", "txt": b"plain", "text": b"text", "json": json.dumps({"caption": "json"}).encode()}
    write_tar(tmp_path / "a.tar", [(f"one.{key}", content) for key, content in (images | texts).items()])
    out = ("--image-key", keys[0], "--caption-key", keys[1], "--out", tmp_path / "out", "--workers", 1)
    run("shard", "webdataset", tmp_path / "a.tar", *out)
    (row,) = read_rows(tmp_path / "out")
    assert row["image"] == images[keys[0].split(";")[-1]]
    assert row["captions"] == [keys[1].removesuffix(".txt")]
    unused = json.loads((tmp_path / "out/yield.json").read_text())["unused"]
    assert unused == {"an image of another key": 1, "a text of another key": 3}


def test_for_a_compressed_archive_the_compression_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    sources = write_sources(tmp_path / "in")
    pictures = tmp_path / "in" / sources["folder"][0]
    packed = [shutil.make_archive(str(tmp_path / kind), kind, pictures) for kind in ("gztar", "bztar", "xztar", "zip")]
    for path, by in zip(packed, ("gzip", "bzip2", "xz", "zip"), strict=True):
        assert f"{path} is compressed with {by}: unpack it" in fails("shard", "folder", path, "--out", tmp_path / "out")
    assert "is compressed with zip: unpack it" in fails("shard", "webdataset", packed[-1], "--out", tmp_path / "out")
    folder = tmp_path / "in"
    assert f"such as '{folder}/*.tar'" in fails("shard", "webdataset", folder, "--out", tmp_path / "out")
    assert f"No shards at {packed[-1]}: it is a file" in fails("stats", packed[-1])
