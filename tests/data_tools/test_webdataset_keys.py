"""Which members of a tar form a record: compared with webdataset's own reader, and where we differ on purpose."""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made import photo, quarantine, read_rows, run
from webdataset.tariterators import base_plus_ext, group_by_keys

from data_tools.readers.webdataset import WebdatasetSource, up_to_first_dot
from data_tools.record import Record
from mvlm.data.images.encoded import EXTENSIONS
from tests.tars import add_file, write_tar

Members = Sequence[tuple[str, bytes]]

WORDS = ("a", "b", "v1", "3", "X", "0001", "", "é", "a b")
FOLDERS = ("", "", "x/", "./", "d.1/", "d.1/e.f/", ".h/")
DRAWN = ("jpg", "PNG", "txt", "json", "cls", "seg.png", "alt.txt", "")


def pairs(*stems: str) -> Members:
    return [(f"{stem}.{kind}", data) for stem in stems for kind, data in (("png", photo(1)), ("txt", stem.encode()))]


def read(source: WebdatasetSource) -> list[tuple[str, Any]]:
    """Each key with its captions, or with the reason why it gives no record."""
    return [(item.key, item.captions if isinstance(item, Record) else item.reason) for item in source]


def drawn(seed: int) -> Members:
    """Random members with and without folders, dots and extensions, often the same up to a dot; names are unique."""
    rng = random.Random(seed)
    members: dict[str, bytes] = {}
    for number in range(40):
        stem = rng.choice(FOLDERS) + ".".join(rng.choice(WORDS) for _ in range(rng.choice((1, 1, 1, 2, 3))))
        for extension in rng.sample(DRAWN, rng.randint(1, 4)):
            name = f"{stem}.{extension}" if extension else stem
            data = json.dumps({"caption": f"c{number}"}) if extension == "json" else f"{number} {extension}"
            if not name.endswith("/"):
                members.setdefault(name, data.encode())
    return list(members.items())


def parts(sample: dict[str, Any], kinds: set[str]) -> list[bytes]:
    """The files of these kinds, but only those with a single extension if there are any."""
    names = [name for name in sample if not name.startswith("__") and name.rpartition(".")[2] in kinds]
    single = [name for name in names if "." not in name]
    return [sample[name] for name in single or names]


@pytest.mark.parametrize("seed", range(30))
def test_keys_up_to_the_first_dot_give_the_records_of_webdataset(tmp_path: Path, seed: int) -> None:
    members = drawn(seed)
    for name, _ in members:
        key, extensions = base_plus_ext(name)
        assert up_to_first_dot(name) == (None if key is None else (key, extensions.lower()))
    expected = []
    for sample in group_by_keys([{"fname": name, "data": data, "__url__": ""} for name, data in members]):
        images, texts, listed = (parts(sample, kinds) for kinds in (set(EXTENSIONS), {"txt"}, {"json"}))
        captions = [json.loads(listed[0])["caption"]] if listed else texts[:1]
        outcome = captions if len(images) == 1 else "more than one image" if images else "no image"
        if images or texts or listed:
            expected.append((sample["__key__"], outcome))
    assert read(WebdatasetSource([write_tar(tmp_path / "a.tar", members)], "first-dot")) == expected


def test_keys_with_dots_lose_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stems = [f"v1.3.{letter}" for letter in "abc"] + ["plain", "v2.1.a"]
    write_tar(tmp_path / "a.tar", pairs("first", *stems[:3]))
    write_tar(tmp_path / "b.tar", pairs(*stems[3:]))
    run("shard", "webdataset", tmp_path / "a.tar", tmp_path / "b.tar", "--out", tmp_path / "out")
    rows = [(row["key"], row["captions"]) for row in read_rows(tmp_path / "out")]
    assert rows == [(stem, [stem]) for stem in ["first", *stems]]
    warning = capsys.readouterr().err
    assert "v1.3.b.png" in warning
    assert warning.count("--key-up-to") == warning.count("\n") == 1
    tars = [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert len(read(WebdatasetSource(tars, "last-dot"))) == 6
    by_first = dict(read(WebdatasetSource(tars, "first-dot")))
    assert by_first == {"first": [b"first"], "v1": "more than one image", "plain": [b"plain"], "v2": [b"v2.1.a"]}


def test_images_of_one_key_are_told_apart_however_far_apart_they_are(tmp_path: Path) -> None:
    stems = ["v1.a", "v2.a", "v1.b"]
    tars = [write_tar(tmp_path / f"{number}.tar", pairs(stem)) for number, stem in enumerate(stems)]
    assert [key for key, _ in read(WebdatasetSource(tars))] == stems
    assert [key for key, _ in read(WebdatasetSource(tars[:2]))] == ["v1", "v2"], "as in webdataset, since none is lost"


def test_files_with_several_extensions_form_one_record(tmp_path: Path) -> None:
    members = [("x.raw.jpg", photo(1)), ("x.alt.txt", b"longer"), ("x.txt", b"plain"), ("x.json", b'{"width": 3}')]
    assert read(WebdatasetSource([write_tar(tmp_path / "a.tar", members)])) == [("x", [b"plain"])]


def test_every_unused_file_is_counted(tmp_path: Path) -> None:
    members = [
        *pairs("a"),
        ("a.cls", b"3"),
        ("a.npy", b"3"),
        ("a.alt.txt", b"another"),
        ("b.json", b'{"caption": "b"}'),
        ("b.txt", b"other words"),
        ("b.jpg", photo(2)),
        ("b.mask.jpg", photo(3)),
        ("c.json", b'{"caption": "the same"}'),
        ("c.txt", b"the same\n"),
        ("c.jpg", photo(4)),
        ("only.cls", b"4"),
        ("README", b"words"),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    run("shard", "webdataset", path, "--key-up-to", "first-dot", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out/yield.json").read_text())
    assert (found["read"], found["kept"]) == (3, 3)
    assert found["unused"] == {
        ".cls is not read": 2,
        ".npy is not read": 1,
        "a .txt beside captions in a .json": 1,
        "its record has another image": 1,
        "its record has another txt": 1,
        "no extension": 1,
    }
    assert "left unused 7 files" in (tmp_path / "out/yield.txt").read_text()


def test_images_in_unsupported_formats_are_dropped_with_the_format_named(tmp_path: Path) -> None:
    members = [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(9)),
        ("a.txt", b"words"),
        ("b.jxl", b"\xff\x0a"),
        *pairs("c"),
        ("c.heif", b""),
        ("d.TIFF", photo(2, "TIFF")),
        ("d.txt", b"d"),
    ]
    source = WebdatasetSource([write_tar(tmp_path / "a.tar", members)])
    assert read(source) == [
        ("a", "unsupported image format (HEIC)"),
        ("b", "unsupported image format (JPEG XL)"),
        ("c", [b"c"]),
        ("d", [b"d"]),
    ]
    assert source.unused == {"HEIC is not read": 1}


def test_many_different_extensions_do_not_swell_the_report(tmp_path: Path) -> None:
    members = [(f"a.{number:x}q", b"") for number in range(300)] + [("a." + "y" * 90, b"")]
    source = WebdatasetSource([write_tar(tmp_path / "a.tar", members)])
    assert read(source) == []
    assert source.unused.total() == 301
    assert len(source.unused) == 51


@pytest.mark.parametrize("kind", ["tar", "gz"])
def test_concatenated_tars_are_read_in_full(tmp_path: Path, kind: str) -> None:
    data = b""
    for stem in "abc":
        with tarfile.open(tmp_path / "one", "w:gz" if kind == "gz" else "w") as tar:
            tar.add(write_tar(tmp_path / "x", pairs(stem)), "inner.tar")
            for name, content in pairs(stem):
                add_file(tar, name, content)
        data += (tmp_path / "one").read_bytes()
    (tmp_path / "all.tar").write_bytes(data)
    assert read(WebdatasetSource([tmp_path / "all.tar"])) == [(stem, [stem.encode()]) for stem in "abc"]
    (tmp_path / "all.tar").write_bytes(data + b"#" * 1024)
    *_, (_, reason) = read(WebdatasetSource([tmp_path / "all.tar"]))
    assert reason == "tar is cut short or damaged from here on"


BOM = "\ufeff"


def test_a_byte_order_mark_loses_no_record(tmp_path: Path) -> None:
    members = [
        ("a.jpg", photo(1)),
        ("a.txt", f"{BOM}text".encode()),
        ("b.jpg", photo(2)),
        ("b.json", f'{BOM}{{"caption": "json"}}'.encode()),
    ]
    run("shard", "webdataset", write_tar(tmp_path / "a.tar", members), "--out", tmp_path / "out")
    assert [row["captions"] for row in read_rows(tmp_path / "out")] == [["text"], ["json"]]
    assert quarantine(tmp_path / "out") == {}
