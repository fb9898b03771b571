"""Tables, and images with a text file beside each, as people really have them."""

from __future__ import annotations

import codecs
import csv
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import photo, quarantine, read_rows, run
from samples import csv_table, put, side_by_side


def test_an_image_needs_a_text_file_and_a_name_of_its_own(tmp_path: Path) -> None:
    argv = side_by_side(tmp_path).argv
    put(tmp_path / "pets/alone.jpg", photo(5))
    put(tmp_path / "pets/twice.jpg", photo(6))
    put(tmp_path / "pets/twice.PNG", photo(7))
    put(tmp_path / "pets/twice.txt", b"two of one name")
    run("shard", *argv, "--out", tmp_path / "out", "--workers", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["cats/1", "cats/2", "dogs/1"]
    assert quarantine(tmp_path / "out") == {
        "alone": "no text file beside the image",
        "twice": "two images of one name",
    }


def test_extensions_in_capitals_are_read_and_unsupported_formats_are_named(tmp_path: Path) -> None:
    put(tmp_path / "pets/a.JPG", photo(1))
    put(tmp_path / "pets/a.TXT", b"a bee")
    put(tmp_path / "pets/a.heic", b"\0\0\0\x18ftypheic")
    put(tmp_path / "pets/b.HEIC", b"\0\0\0\x18ftypheic")
    put(tmp_path / "pets/b.txt", b"an ant")
    put(tmp_path / "pets/c.psd", b"8BPS")
    run("shard", "side_by_side", tmp_path / "pets", "--out", tmp_path / "out", "--workers", 1)
    assert [(row["key"], row["captions"]) for row in read_rows(tmp_path / "out")] == [("a", ["a bee"])]
    assert quarantine(tmp_path / "out") == {"b": "unsupported image format (HEIC)"}


def test_a_line_of_a_text_file_is_one_caption_whatever_characters_it_has(tmp_path: Path) -> None:
    put(tmp_path / "pets/a.jpg", photo(1))
    put(tmp_path / "pets/a.txt", "a\u2028bee\x0con\x85a\x1crose\r\nan ant\ra wasp\n".encode())
    run("shard", "side_by_side", tmp_path / "pets", "--out", tmp_path / "out", "--workers", 1)
    assert [row["captions"] for row in read_rows(tmp_path / "out")] == [["a bee on a rose", "an ant", "a wasp"]]


def test_a_table_without_the_usual_columns_must_be_told_which_to_read(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    put(tmp_path / "bare.csv", b"1.jpg;a bus\n2.jpg;a train\n")
    said = fails("shard", "table", tmp_path / "bare.csv", "--out", tmp_path / "out")
    assert "has the columns 1.jpg, a bus (its first line): say which with --image-column, or, if that line is" in said
    put(tmp_path / "bare.jsonl", b'{"Bild": "1.jpg", "text": "a bus"}\n')
    said = fails("shard", "table", tmp_path / "bare.jsonl", "--out", tmp_path / "out")
    assert "has the columns Bild, text: say which with --image-column." in said
    path = csv_table(tmp_path).argv[1]
    said = fails("shard", "table", path, "--caption-column", "words", "--out", tmp_path / "out")
    assert "say which with --caption-column" in said


def test_if_nothing_is_kept_the_commonest_reason_is_given(tmp_path: Path, fails: Callable[..., str]) -> None:
    put(tmp_path / "pairs.csv", b"image,text\na.jpg,a bee\nb.jpg,an ant\n../c.jpg,a wasp\n")
    said = fails("shard", "table", tmp_path / "pairs.csv", "--out", tmp_path / "out", "--workers", 1)
    assert "because 3 of 3 records were dropped, 2 of them for 'image is missing' (pairs.csv:1, a.jpg): fix" in said


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl", "pairs.json"])
def test_for_a_table_in_utf_16_the_command_that_converts_it_is_given(
    tmp_path: Path, name: str, fails: Callable[..., str]
) -> None:
    put(tmp_path / name, "image,text\r\na.jpg,a bee\r\n".encode("utf-16"))
    said = fails("shard", "table", tmp_path / name, "--out", tmp_path / "out")
    assert f"{name} is in UTF-16: convert it to UTF-8, as `iconv -f UTF-16 -t UTF-8` does." in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"image,text\ra.jpg,a bee\r", "is not a table from line 1 on (its lines end as on old Macs): save it again."),
        (b"PK\3\4\x14\0\6\0", "is a spreadsheet or an archive, and no text: save it as CSV, or unpack it."),
        (None, "is a folder: give the file in it."),
    ],
    ids=["old Mac", "spreadsheet", "folder"],
)
def test_what_is_no_table_is_said_so(
    tmp_path: Path, content: bytes | None, sentence: str, fails: Callable[..., str]
) -> None:
    path = tmp_path / "pairs.csv"
    path.mkdir() if content is None else path.write_bytes(content)
    assert f"{path} {sentence}" in fails("shard", "table", path, "--out", tmp_path / "out")


def test_texts_are_read_as_windows_writes_them_or_listed_with_a_reason(tmp_path: Path) -> None:
    encodings = {"a": "utf-8-sig", "b": "utf-16", "c": "utf-16-be", "d": "cp1252"}
    for number, (name, encoding) in enumerate(encodings.items()):
        put(tmp_path / f"pets/{name}.jpg", photo(number))
        mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
        put(tmp_path / f"pets/{name}.txt", mark + "ein Kätzchen\r\n猫\r\n".encode(encoding, "replace"))
    put(tmp_path / "pets/e.jpg", photo(5))
    put(tmp_path / "pets/e.txt", codecs.BOM_UTF16_LE + b"\x00\xd8!")  # half a surrogate pair
    run("shard", "side_by_side", tmp_path / "pets", "--out", tmp_path / "out", "--workers", 1, "--tolerate", 1)
    assert {row["key"]: row["captions"] for row in read_rows(tmp_path / "out")} == {
        name: ["ein Kätzchen", "猫"] for name in "abc"
    } | {"d": ["?"]}
    assert quarantine(tmp_path / "out") == {"e": "caption is not UTF-8"}


@pytest.mark.parametrize("on_disk", ["bär", "ba\u0308r", os.fsdecode(b"b\xe4r")], ids=["as given", "Mac", "Latin-1"])
def test_an_image_is_found_however_the_disk_spells_its_name(tmp_path: Path, on_disk: str) -> None:
    put(tmp_path / f"in/Bilder/{on_disk}/{on_disk}.jpg", photo(1))
    put(tmp_path / "in/t.csv", "image,text\nbär/bär.jpg,ein Bär\n".encode())
    put(
        tmp_path / "in/captions.jsonl",
        b'{"id": 1, "image": "Bilder/ba\xcc\x88r/ba\xcc\x88r.jpg", "caption": "ein B\xc3\xa4r"}',
    )
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(tmp_path / "in", "in")
    for place, (source, path) in enumerate([("table", "in/t.csv"), ("folder", "in"), ("folder", "in.tar")]):
        run("shard", source, tmp_path / path, "--out", tmp_path / f"out{place}", "--workers", 1)
        (row,) = read_rows(tmp_path / f"out{place}")
        assert (row["image"], row["captions"]) == (photo(1), ["ein Bär"])


def test_what_is_not_utf_8_is_said_so(tmp_path: Path) -> None:
    for name in ("bär", os.fsdecode(b"b\xfcr"), "bear"):
        put(tmp_path / f"in/{name}.jpg", photo(len(name)))
        put(tmp_path / f"in/{name}.txt", b"a bear")
    put(tmp_path / "in/t.csv", "image,text\nbär.jpg,a bear\nbür.jpg,a bear\nbear.jpg,a bear\n".encode("latin-1"))
    for source, path in (("table", "in/t.csv"), ("side_by_side", "in")):
        run("shard", source, tmp_path / path, "--out", tmp_path / source, "--workers", 1, "--tolerate", 1)
    bytes_of = {name: os.fsdecode(name.encode("latin-1")) for name in ("bär.jpg", "bür.jpg", "bür")}
    assert quarantine(tmp_path / "table") == {
        bytes_of["bär.jpg"]: "image path is not UTF-8",
        bytes_of["bür.jpg"]: "id is not UTF-8",
    }
    assert quarantine(tmp_path / "side_by_side") == {bytes_of["bür"]: "id is not UTF-8"}


def test_absolute_paths_through_a_link_are_followed_and_keys_are_relative(tmp_path: Path) -> None:
    put(tmp_path / "disk/pets/a.jpg", photo(1))
    put(tmp_path / "elsewhere.jpg", photo(2))
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    paths = [tmp_path / "home/pets/a.jpg", tmp_path / "elsewhere.jpg", tmp_path / "gone/a.jpg"]
    put(tmp_path / "disk/pairs.csv", "\n".join(["image,text", *(f"{path},a bee" for path in paths)]).encode())
    out = tmp_path / "out"
    run("shard", "table", tmp_path / "home/pairs.csv", "--out", out, "--workers", 1, "--tolerate", 1)
    assert [row["key"] for row in read_rows(out)] == ["pets/a.jpg"]
    assert quarantine(out) == {str(paths[1]): "image path leaves the folder", str(paths[2]): "image is missing"}


def test_for_absolute_paths_elsewhere_the_folder_to_give_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    images = [tmp_path / f"disk/{name}.jpg" for name in ("a/1", "b/2")]
    for number, image in enumerate(images):
        put(image, photo(number))
    put(tmp_path / "in/pairs.csv", f"image,text\n{images[0]},a bee\n{images[1]},an ant\n".encode())
    argv = ("shard", "table", tmp_path / "in/pairs.csv", "--out", tmp_path / "out")
    said = fails(*argv)
    assert f"absolute paths of images, such as {images[0]}: give --images, such as {tmp_path}/disk." in said
    run(*argv, "--images", tmp_path / "disk", "--workers", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["a/1.jpg", "b/2.jpg"]


def test_the_image_folder_is_found_even_if_some_images_are_missing(tmp_path: Path) -> None:
    put(tmp_path / "Images/2.jpg", photo(2))
    (tmp_path / "a folder").mkdir()
    put(tmp_path / "captions.txt", b"image,caption\n1.jpg,a bee\n2.jpg,an ant\n")
    run("shard", "table", tmp_path / "captions.txt", "--out", tmp_path / "out", "--workers", 1, "--tolerate", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["2.jpg"]
    assert quarantine(tmp_path / "out") == {"1.jpg": "image is missing"}


def test_paths_with_blanks_around_them_and_of_windows_are_found_or_explained(tmp_path: Path) -> None:
    for number, name in enumerate(["a.jpg", "b.jpg", "b.jpg ", "sub/c.jpg"]):
        put(tmp_path / "Images" / name, photo(number))
    fields = ["a.jpg ", "b.jpg ", " sub\\c.jpg", "C:\\disk\\a.jpg", "D:/a.jpg"]
    put(tmp_path / "t.csv", "\n".join(["image,text", *(f"{field},a bee" for field in fields)]).encode())
    run("shard", "table", tmp_path / "t.csv", "--out", tmp_path / "out", "--workers", 1, "--tolerate", 1)
    assert [row["image"] for row in read_rows(tmp_path / "out")] == [photo(0), photo(2), photo(3)]
    dropped = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in dropped] == ["t.csv:4", "t.csv:5"]
    assert {entry["reason"] for entry in dropped} == {
        "image path has a drive of Windows: make it relative to the folder of images"
    }


def test_rows_of_an_image_that_are_apart_are_told_to_be_sorted(tmp_path: Path, fails: Callable[..., str]) -> None:
    for number in range(2):
        put(tmp_path / f"{number}.jpg", photo(number))
    put(tmp_path / "t.csv", b"image,text\n0.jpg,a bee\n1.jpg,an ant\n0.jpg,a wasp\n")
    said = fails("shard", "table", tmp_path / "t.csv", "--out", tmp_path / "out", "--tolerate", 0)
    assert "'duplicate id' (t.csv:3, an earlier record has this id; sort a table in which the rows of an " in said


def test_a_link_is_not_taken_for_the_image_folder(tmp_path: Path, fails: Callable[..., str]) -> None:
    put(tmp_path / "secret/1.jpg", photo(1))
    put(tmp_path / "in/captions.csv", b"image,caption\n1.jpg,a bee\n")
    (tmp_path / "in/Images").symlink_to(tmp_path / "secret")
    said = fails("shard", "table", tmp_path / "in/captions.csv", "--out", tmp_path / "out")
    assert "1 of them for 'image is missing' (captions.csv:1, 1.jpg): fix" in said


def test_an_unclosed_quote_swallows_no_rows(tmp_path: Path, fails: Callable[..., str]) -> None:
    for number in range(5):
        put(tmp_path / f"{number}.jpg", photo(number))
    argv = ("shard", "table", tmp_path / "t.tsv", "--out", tmp_path / "out")
    for last in ("4.jpg\tan ant", '4.jpg\t"an ant'):
        rows = ["image\ttext", '0.jpg\t"two\nlines"', '1.jpg\t"a" in quotes', '2.jpg\t"a bee', "3.jpg\ta wasp", last]
        put(tmp_path / "t.tsv", "\n".join(rows).encode())
        said = fails(*argv)
        assert "t.tsv is not a table from line 5 on (a text that begins with a quote does not end with one)" in said
    put(tmp_path / "t.tsv", "\n".join([*rows[:3], "3.jpg\ta wasp"]).encode())
    run(*argv, "--workers", 1)
    assert [row["captions"] for row in read_rows(tmp_path / "out")] == [["two lines"], ["a in quotes"], ["a wasp"]]


def test_a_caption_is_not_cut_at_an_unquoted_comma(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.jpg", photo(number))
    put(tmp_path / "t.csv", b'image,text\n0.jpg,a bee, an ant\n1.jpg,"a bee, an ant"\n2.jpg,a wasp,,\n')
    run("shard", "table", tmp_path / "t.csv", "--out", tmp_path / "out", "--workers", 1)
    assert [row["captions"] for row in read_rows(tmp_path / "out")] == [["a bee, an ant"], ["a wasp"]]
    assert quarantine(tmp_path / "out") == {"": "row has more fields than the header"}


def test_a_list_of_captions_in_a_field_is_read_as_pandas_and_json_spell_it(tmp_path: Path) -> None:
    captions = ["a bee's wing", 'an "ant"']
    fields = [str(captions), json.dumps(captions), "[a wasp]", "[1, 2]", "[" * 9999 + "]", "[" + "-" * 9000 + "1]"]
    for number in range(len(fields)):
        put(tmp_path / f"{number}.jpg", photo(number))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "text"), *((f"{n}.jpg", field) for n, field in enumerate(fields))])
    run("shard", "table", tmp_path / "t.csv", "--out", tmp_path / "out", "--workers", 1)
    assert [row["captions"] for row in read_rows(tmp_path / "out")] == [captions] * 2 + [[one] for one in fields[2:]]


@pytest.mark.parametrize("begins", ["sep=;\r\n", "\ufeffsep=;\n", "SEP=;\n"])
def test_the_line_that_tells_excel_the_delimiter_is_not_the_header(tmp_path: Path, begins: str) -> None:
    put(tmp_path / "0.jpg", photo(0))
    put(tmp_path / "t.csv", f"{begins}image;text;;\n0.jpg;a bee, an ant, a wasp;;\n".encode())
    run("shard", "table", tmp_path / "t.csv", "--out", tmp_path / "out", "--workers", 1)
    assert [row["captions"] for row in read_rows(tmp_path / "out")] == [["a bee, an ant, a wasp"]]


def test_two_columns_of_the_same_name_are_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    put(tmp_path / "t.csv", b"image,text,text\n0.jpg,a bee,an ant\n")
    said = fails("shard", "table", tmp_path / "t.csv", "--out", tmp_path / "out")
    assert "t.csv has two columns 'text': rename one" in said


def test_malformed_rows_of_json_are_listed(tmp_path: Path, fails: Callable[..., str]) -> None:
    put(tmp_path / "a.jpg", photo(1))
    rows = [
        '{"image": "a.jpg", "caption": "a bee", "id": 0}',
        "[1]",
        "{",
        '{"image": 3, "id": 1}',
        '{"image": "a.jpg"}',
    ]
    for name, text in (("p.jsonl", "\n".join(rows)), ("p.json", f"[{', '.join([*rows[:2], *rows[3:]])}]")):
        out = tmp_path / f"out-{name}"
        put(tmp_path / name, text.encode())
        argv = ("shard", "table", tmp_path / name, "--key-column", "id", "--out", out)
        run(*argv, "--workers", 1, "--tolerate", 1)
        assert [(row["key"], row["captions"]) for row in read_rows(out)] == [("0", ["a bee"])]
        reasons = [json.loads(line)["reason"] for line in (out / "quarantine.jsonl").read_text().splitlines()]
        malformed = 2 if name == "p.json" else 3
        assert sorted(reasons) == sorted(["annotation is malformed"] * malformed + ["no caption"])
    for name, text in (("q.json", "[1]"), ("q.jsonl", "[1]"), ("r.json", "")):
        put(tmp_path / name, text.encode())
        assert "object" in fails("shard", "table", tmp_path / name, "--out", tmp_path / "out")


def test_for_links_in_place_of_images_the_source_urls_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    put(tmp_path / "a.csv", b"URL,caption\nhttp://127.0.0.1:1/a.jpg,a bee\n")
    pq.write_table(pa.table({"url": ["http://127.0.0.1:1/a.jpg"], "caption": ["a bee"]}), tmp_path / "a.parquet")
    for source, name in (("table", "a.csv"), ("hf", "a.parquet")):
        said = fails("shard", source, tmp_path / name, "--out", tmp_path / "out")
        assert "and links in place of images: `mvlm-data shard urls` downloads them." in said
    put(tmp_path / "b.csv", b"image,caption\nhttps://127.0.0.1:1/a.jpg,a bee\n")
    said = fails("shard", "table", tmp_path / "b.csv", "--out", tmp_path / "out")
    assert "1 of them for 'image is a link: the source urls downloads those' (b.csv:1, https://" in said


def test_a_row_without_an_image_and_one_that_leaves_the_folder_are_listed(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jpg", photo(1))
    put(tmp_path / "b.jpg", photo(2))
    put(tmp_path / "in/pairs.csv", b"image,text\na.jpg,a bee\n,nothing\n../b.jpg,outside\nc.jpg,not there\n")
    run("shard", "table", tmp_path / "in/pairs.csv", "--out", tmp_path / "out", "--workers", 1, "--tolerate", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == ["a.jpg"]
    assert quarantine(tmp_path / "out") == {
        "": "no image path",
        "../b.jpg": "image path leaves the folder",
        "c.jpg": "image is missing",
    }
