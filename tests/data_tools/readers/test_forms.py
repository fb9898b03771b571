"""The same annotations in other forms: with a byte-order mark, with captions as objects, with ids as strings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import photo, read_rows, run
from samples import SAMPLES, put, put_json

from data_tools.filters import clean_captions
from data_tools.readers import json_stream
from data_tools.readers.captions import captions_of
from data_tools.readers.json_stream import json_items
from mvlm.errors import UserError

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("name", ["coco", "karpathy-coco", "sbu", "vg", "vqa", "nlvr2", "entailment"])
def test_a_byte_order_mark_in_an_annotation_file_loses_no_record(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name](tmp_path / "in")
    for path in (argument for argument in sample.argv if isinstance(argument, Path) and argument.is_file()):
        path.write_bytes(BOM + path.read_bytes())
    run("shard", *sample.argv, "--out", tmp_path / "out", "--workers", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == list(sample.rows)


def test_a_byte_order_mark_in_a_folder_a_tsv_and_a_list_of_names_loses_no_record(tmp_path: Path) -> None:
    for number in range(2):
        put(tmp_path / f"in/{number}.jpg", photo(number))
    lines = [{"id": n, "image": f"{n}.jpg", "caption": f"caption {n}"} for n in range(2)]
    put(tmp_path / "in/captions.jsonl", b"".join(BOM + json.dumps(line).encode() + b"\n" for line in lines))
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "folder", "--workers", 1)
    put(tmp_path / "cc.tsv", BOM + b"http://a/0\tcaption 0\nhttp://a/1\tcaption 1\n")
    put(tmp_path / "names", BOM + b"http://a/0\t0.jpg\nhttp://a/1\t1.jpg\n")
    argv = ["cc", tmp_path / "cc.tsv", "--images", tmp_path / "in", "--names", tmp_path / "names"]
    run("shard", *argv, "--out", tmp_path / "cc", "--workers", 1)
    for out in ("folder", "cc"):
        assert [row["captions"] for row in read_rows(tmp_path / out)] == [["caption 0"], ["caption 1"]]


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a", ["a"]),
        (None, [None]),
        (["a", None, 3], ["a", None, 3]),
        ([{"raw": "a", "tokens": ["a"], "sentid": 1}, {"raw": "b"}], ["a", "b"]),
        ([{"caption": "a", "id": 1}, {"text": "b"}, {"words": "c"}], ["a", "b", None]),
        ({"raw": ["a", "b"], "imgid": [1, 1]}, ["a", "b"]),
        ([[["a"]]], [["a"]]),
    ],
)
def test_captions_may_be_strings_objects_or_lists_of_either(value: Any, captions: list[Any]) -> None:
    assert captions_of(value) == captions


def test_captions_as_objects_are_read_from_folders_and_tables(tmp_path: Path) -> None:
    sentences = [{"raw": "one", "tokens": ["one"]}, {"raw": "two", "tokens": ["two"]}]
    put(tmp_path / "in/0.jpg", photo(0))
    put(tmp_path / "in/captions.jsonl", json.dumps({"id": 0, "image": "0.jpg", "captions": sentences}).encode())
    run("shard", "folder", tmp_path / "in", "--out", tmp_path / "folder", "--workers", 1)
    table = pa.table({"image": [{"bytes": photo(0), "path": None}], "sentences": [sentences]})
    (tmp_path / "tables").mkdir()
    pq.write_table(table, tmp_path / "tables/x.PARQUET")  # as some systems write names
    run("shard", "hf", tmp_path / "tables/x.PARQUET", "--out", tmp_path / "hf", "--workers", 1)
    run("shard", "hf", tmp_path / "tables", "--in-place", "--out", tmp_path / "in_place", "--workers", 1)
    for out in ("folder", "hf", "in_place"):
        assert read_rows(tmp_path / out)[0]["captions"] == ["one", "two"]


def test_ids_of_coco_may_be_strings(tmp_path: Path) -> None:
    sample = SAMPLES["coco"](tmp_path / "in")
    content = json.loads(sample.argv[1].read_text())
    for image in content["images"]:
        image["id"] = str(image["id"])
    for annotation in content["annotations"][::2]:
        annotation["image_id"] = str(annotation["image_id"])
    content["images"].append({"id": True, "file_name": content["images"][0]["file_name"]})
    content["annotations"].append({"image_id": ["a list"], "caption": "of none"})
    put_json(sample.argv[1], content)
    run("shard", *sample.argv, "--out", tmp_path / "out", "--workers", 1)
    assert {row["key"]: row["captions"] for row in read_rows(tmp_path / "out")} == {
        key: row["captions"] for key, row in sample.rows.items()
    }
    dropped = json.loads((tmp_path / "out/yield.json").read_text())["dropped"]
    assert dropped == {"annotation is malformed": 1, "captions of an image the file does not list": 1}


@pytest.mark.parametrize(
    "text", ["\u200b", "\ufeff", " \u200b\u200d\u2060 ", "\u3164", "\u2800\u00a0", "\U000e0041\ufe0f"]
)
def test_a_caption_of_invisible_characters_is_empty(text: str) -> None:
    assert clean_captions([text]) == ((), {"caption is empty": 1})
    assert clean_captions([f"{text}x"])[0]


def test_joiners_within_a_caption_are_kept() -> None:
    for caption in ("👩‍🚀 on the moon", "می‌خواهم", "❤️"):
        assert clean_captions([caption]) == ((caption,), {})


@pytest.fixture
def json_file(tmp_path: Path) -> Callable[[bytes], list[Any]]:
    def read(content: bytes, prefix: str = "item") -> list[Any]:
        put(tmp_path / "x.json", content)
        with (tmp_path / "x.json").open("rb") as file:
            return list(json_items(file, prefix))

    return read


@pytest.mark.parametrize("before", range(65530, 65542))
def test_brackets_within_strings_are_not_counted_wherever_a_chunk_ends(
    json_file: Callable[[bytes], list[Any]], before: int
) -> None:
    texts = ["[" * 500, '\\"[' * 200, "{\\\\", "\\", "<", "[" * 70_000]
    content = json.dumps(["x" * before, *texts, {"a": [{"b": []}]}]).encode()
    assert json_file(content)[1:-1] == texts


def test_values_nested_too_deep_and_strings_too_long_are_refused(
    json_file: Callable[[bytes], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json_file(b'["' + b"x" * 200_000 + b'",' + b"[" * 99 + b"]" * 99 + b"]")[1]
    for hostile in (b"[" * 101, b'{"a":' * 20_000, b'["' + b"x" * 65_000 + b'"' + b",[" * 20_000):
        with pytest.raises(UserError, match="nests its values more than 100 deep"):
            json_file(hostile)
    monkeypatch.setattr(json_stream, "MAX_TEXT_BYTES", 1_000_000)
    with pytest.raises(UserError, match="a text of more than 1,000,000 bytes"):
        json_file(b'["' + b"\\" * 1_100_000)
