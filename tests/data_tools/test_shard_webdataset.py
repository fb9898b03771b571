"""Tars as the webdataset library writes them, and damaged and malicious ones."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from made import photo, quarantine, read_rows, run

from tests.tars import add_file


def link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    tar.addfile(info)


def test_tars_written_by_webdataset_are_read_in_full(tmp_path: Path) -> None:
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    images = {
        f"part/{number:04d}": (extension, photo(number, kind)) for number, (extension, kind) in enumerate(kinds.items())
    }
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for key, (extension, data) in images.items():
            writer.write({"__key__": key, extension: data, "txt": f"caption of {key}\n"})
    with webdataset.TarWriter(str(tmp_path / "b.tar.gz"), compress=True) as writer:
        writer.write({"__key__": "list", "jpeg": photo(7), "json": {"captions": ["one", "two"], "source": "sbu"}})
        writer.write({"__key__": "single", "jpg": photo(8), "json": {"caption": "three"}, "txt": "three", "cls": 4})
        writer.write({"__key__": "plain", "jpg": photo(9), "json": {"width": 24}, "txt": "four"})
    run("shard", "webdataset", tmp_path / "a.tar", tmp_path / "b.tar.gz", "--out", tmp_path / "out")
    rows = {row["key"]: row for row in read_rows(tmp_path / "out")}
    assert list(rows) == [*images, "list", "single", "plain"]
    for key, (_, data) in images.items():
        assert rows[key]["image"] == data
        assert rows[key]["captions"] == [f"caption of {key}"]
    assert rows["list"]["captions"] == ["one", "two"]
    assert rows["list"]["source"] == "sbu"
    assert rows["single"]["captions"] == ["three"]
    assert rows["plain"]["captions"] == ["four"]


def test_hostile_members_are_dropped_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(photo(66))
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("../up", "/abs", "a/../../b"):
            add_file(tar, f"{name}.jpg", photo(1))
            add_file(tar, f"{name}.txt", b"climbs")
        link(tar, "soft.jpg", str(tmp_path / "secret.jpg"))
        add_file(tar, "soft.txt", b"follows a link")
        add_file(tar, "ok.jpg", photo(2))
        add_file(tar, "ok.txt", b"fine")
        link(tar, "hard.jpg", "ok.jpg", tarfile.LNKTYPE)
        link(tar, "hard outside.jpg", str(tmp_path / "secret.jpg"), tarfile.LNKTYPE)
        link(tar, "pipe.jpg", "", tarfile.FIFOTYPE)
        link(tar, "device.jpg", "", tarfile.CHRTYPE)
        add_file(tar, "twice.jpg", photo(3))
        add_file(tar, "twice.png", photo(4, "PNG"))
        add_file(tar, "words.txt", b"no picture")
        add_file(tar, "deep.jpg", photo(5))
        add_file(tar, "deep.json", b"[" * 200_000)
        add_file(tar, "wordless.jpg", photo(7))
        add_file(tar, "latin.jpg", photo(6))
        add_file(tar, "latin.txt", "caf\xe9".encode("latin-1"))
        add_file(tar, "ok.jpg", photo(8))
        add_file(tar, "ok.txt", b"an id that was used before")
    before = sorted(path.name for path in tmp_path.iterdir())
    run("shard", "webdataset", tmp_path / "evil.tar", "--out", tmp_path / "out", "--tolerate", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["ok"]
    assert quarantine(tmp_path / "out") == {
        "../up": "path leaves the archive",
        "/abs": "path leaves the archive",
        "a/../../b": "path leaves the archive",
        "soft": "a link or device, not a file",
        "hard": "a link or device, not a file",
        "hard outside": "a link or device, not a file",
        "pipe": "a link or device, not a file",
        "device": "a link or device, not a file",
        "twice": "more than one image",
        "words": "no image",
        "deep": "the .json is not JSON in UTF-8",
        "wordless": "no caption",
        "latin": "caption is not UTF-8",
        "ok": "duplicate id",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])


def test_a_hostile_tar_of_a_folder_gives_nothing_from_outside_itself(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(photo(66))
    names = {"up": "../secret.jpg", "abs": str(tmp_path / "secret.jpg"), "link": "link.jpg", "ok": "ok.jpg"}
    lines = [json.dumps({"id": key, "image": image, "captions": ["x"]}) for key, image in names.items()]
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        add_file(tar, "captions.jsonl", "\n".join(lines).encode())
        link(tar, "link.jpg", str(tmp_path / "secret.jpg"))
        add_file(tar, "../secret.jpg", photo(1))
        add_file(tar, "ok.jpg", photo(2))
    run("shard", "folder", tmp_path / "evil.tar", "--out", tmp_path / "out", "--tolerate", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["ok"]
    assert set(quarantine(tmp_path / "out")) == {"up", "abs", "link"}


@pytest.mark.parametrize("cut", ["in an image", "in a header", "between members", "garbled header"])
def test_a_damaged_tar_gives_its_intact_records_and_is_listed(tmp_path: Path, cut: str) -> None:
    with webdataset.TarWriter(str(tmp_path / "whole.tar")) as writer:
        for number in range(6):
            writer.write({"__key__": f"{number}", "jpg": photo(number, size=(60, 60)), "txt": "noise"})
    data = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        third = tar.getmember("3.jpg").offset
    kept_bytes = third + {"in an image": 900, "in a header": 99}.get(cut, 0)
    rest = b"#" * 512 + data[third + 512 :] if cut == "garbled header" else b""
    (tmp_path / "cut.tar").write_bytes(data[:kept_bytes] + rest)
    run("shard", "webdataset", tmp_path / "cut.tar", "--out", tmp_path / "out")
    kept = [row["key"] for row in read_rows(tmp_path / "out")]
    assert kept[:2] == ["0", "1"]
    assert len(kept) <= 3
    assert list(quarantine(tmp_path / "out").values()) == ["tar is cut short or damaged from here on"]


def test_a_missing_tar_and_a_file_that_is_no_tar_are_one_sentence(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "x.tar").write_bytes(b"PK\x03\x04" + bytes(5000))
    assert "x.tar" in fails("shard", "webdataset", tmp_path / "x.tar", "--out", tmp_path / "out")
    assert "gone.tar" in fails("shard", "webdataset", tmp_path / "gone.tar", "--out", tmp_path / "out")
