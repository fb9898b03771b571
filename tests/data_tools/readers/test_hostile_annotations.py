"""Malformed and malicious annotations: each is listed with a reason, and no file outside the image folders is read."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made import photo, quarantine, read_rows, run
from samples import SAMPLES, put, put_json, put_lines

from data_tools.origin import open_source

LEAVES, MALFORMED, MISSING = "image path leaves the folder", "annotation is malformed", "image is missing"


def outcomes(out: Path) -> dict[str, str]:
    """Reasons by the number of the record in its file."""
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    return {entry["where"].rpartition(":")[2]: entry["reason"] for entry in map(json.loads, lines)}


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    put_json(path, content)


def shard(argv: list[Any], out: Path) -> dict[str, str]:
    run("shard", *argv, "--out", out, "--workers", 1, "--tolerate", 1)
    return outcomes(out)


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "ABSOLUTE", "x\0.jpg", ""])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "in/secret.jpg"
    put(secret, photo(66))
    sample = SAMPLES["coco"](tmp_path / "in")
    hostile = str(secret) if name == "ABSOLUTE" else name
    edit(sample.argv[1], lambda content: content["images"][0].update(file_name=hostile))
    assert shard(sample.argv, tmp_path / "out") == {"1": LEAVES}
    assert photo(66) not in [row["image"] for row in read_rows(tmp_path / "out")]


def test_malformed_coco_annotations_are_listed(tmp_path: Path) -> None:
    sample = SAMPLES["coco"](tmp_path / "in")

    def change(content: Any) -> None:
        first = content["images"][0]
        content["images"] += [7, {"id": "8"}, {"id": 9}, first | {"id": 10, "file_name": 3}, first | {"id": 11}, first]
        content["annotations"] += [{"image_id": 12, "caption": "of none"}, "text", {"image_id": 11, "caption": None}]

    edit(sample.argv[1], change)
    assert shard(sample.argv, tmp_path / "out") == {
        "4": MALFORMED,
        "5": MALFORMED,
        "6": MALFORMED,
        "7": MALFORMED,
        "8": "caption is not text",
        "9": "no caption",
        "10": "captions of an image the file does not list",
    }
    assert [row["key"] for row in read_rows(tmp_path / "out")] == list(sample.rows)


def test_malformed_karpathy_and_visual_genome_annotations_are_listed(tmp_path: Path) -> None:
    sample = SAMPLES["karpathy-coco"](tmp_path / "k")
    edit(sample.argv[1], lambda content: content["images"][0].pop("sentences"))
    edit(sample.argv[1], lambda content: content["images"][1].update(filepath="../k/train2014"))
    assert shard(sample.argv, tmp_path / "k-out") == {"1": MALFORMED, "2": LEAVES}
    sample = SAMPLES["vg"](tmp_path / "v")
    edit(sample.argv[1], lambda content: content[0].update(id="../VG_100K_2/1"))
    edit(sample.argv[1], lambda content: content[1]["regions"][0].update(phrase={"no": "text"}))
    edit(sample.argv[1], lambda content: content[2].update(regions=[]))
    assert shard(sample.argv, tmp_path / "v-out") == {"1": MALFORMED, "3": "no caption"}
    assert read_rows(tmp_path / "v-out")[0]["captions"] == ["shade is along the street"]


def test_malformed_conceptual_captions_rows_are_listed(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path / f"images/{number}.jpg", photo(number))
    rows = [
        b"no tab",
        b"caption\tftp://x/y.jpg",
        b"",
        b"caf\xe9\thttp://a/b",
        b"\thttp://a/b",
        b"good \x07\thttp://a/b\r",
    ]
    put(tmp_path / "cc.tsv", b"\n".join(rows))
    argv = ["cc", tmp_path / "cc.tsv", "--images", tmp_path / "images", "--names", "row0"]
    assert shard(argv, tmp_path / "out") == {
        "1": "row is not caption<TAB>url",
        "2": "row has no URL",
        "3": "row is not caption<TAB>url",
        "4": "caption is not UTF-8",
        "5": "caption is empty",
    }
    (row,) = read_rows(tmp_path / "out")
    assert (row["key"], row["image"], row["captions"]) == ("00000005", photo(5), ["good"])


def test_sbu_urls_cannot_name_other_files(tmp_path: Path) -> None:
    put(tmp_path / "secret.jpg", photo(66))
    put(tmp_path / "sbu/ok.jpg", photo(1))
    urls = ["http://x/..", "http://x/..%2Fsecret.jpg", "http://x/", "http://[x", None, "http://x/ok.jpg?size=large"]
    put_json(tmp_path / "sbu.json", {"captions": [f"caption {n}" for n in range(6)], "image_urls": urls})
    found = shard(["sbu", tmp_path / "sbu.json", "--images", tmp_path / "sbu"], tmp_path / "out")
    assert found == {"1": MISSING, "2": MISSING, "3": MISSING, "4": MISSING, "5": MALFORMED}
    assert [row["image"] for row in read_rows(tmp_path / "out")] == [photo(1)]


def test_malformed_annotations_of_other_tasks_are_listed(tmp_path: Path) -> None:
    sample = SAMPLES["vqa"](tmp_path / "vqa")
    questions, annotations = sample.argv[1], sample.argv[3]
    edit(questions, lambda content: content["questions"].append({"question_id": 5, "image_id": 1, "question": "?"}))
    edit(questions, lambda content: content["questions"][1].update(image_id=262146))
    edit(annotations, lambda content: content["annotations"][0].update(answers=[{"answer": 3}]))
    assert shard(sample.argv, tmp_path / "vqa-out") == {
        "2": "question and annotation name different images",
        "3": MALFORMED,
        "4": "question without annotation",
    }
    edit(questions, lambda content: content["questions"].append({"question_id": [5], "image_id": 1, "question": "?"}))
    edit(annotations, lambda content: content["annotations"].insert(0, {"question_id": {}}))
    assert shard(sample.argv, tmp_path / "no-ids") == outcomes(tmp_path / "vqa-out") | {"5": MALFORMED}
    sample = SAMPLES["nlvr2"](tmp_path / "nlvr2")
    lines = [json.loads(line) for line in sample.argv[1].read_text().splitlines()]
    lines[0] |= {"directory": "../train/37"}
    lines[1] |= {"label": "maybe"}
    put_lines(sample.argv[1], [*lines, lines[2] | {"identifier": "train-1"}, lines[2] | {"identifier": "../x-1-2-3"}])
    assert shard(sample.argv, tmp_path / "nlvr2-out") == {"1": LEAVES, "2": MALFORMED, "4": MALFORMED, "5": LEAVES}
    sample = SAMPLES["entailment"](tmp_path / "ve")
    lines = [json.loads(line) for line in sample.argv[1].read_text().splitlines()]
    lines[0] |= {"Flickr30K_ID": "../flickr30k-images/4705552913"}
    lines[1] |= {"gold_label": "-"}
    lines[2] |= {"sentence2": " \n"}
    put_lines(sample.argv[1], lines)
    with sample.argv[1].open("ab") as file:
        file.write(b'[1]\n{"pairID": "\xff"}\n' + b"[" * 100_000 + b"\n\n")
    assert shard(sample.argv, tmp_path / "ve-out") == {
        "1": LEAVES,
        "2": "no gold label",
        "3": "sentence is empty",
        "5": MALFORMED,
        "6": MALFORMED,
        "7": MALFORMED,
        "8": MALFORMED,
    }


def test_duplicate_ids_are_kept_once(tmp_path: Path) -> None:
    sample = SAMPLES["vg"](tmp_path / "in")
    edit(sample.argv[1], lambda content: content.append(content[0]))
    run("shard", *sample.argv, "--out", tmp_path / "out", "--workers", 1)
    assert quarantine(tmp_path / "out") == {"1": "duplicate id"}


def test_a_large_json_is_not_held_in_memory(tmp_path: Path) -> None:
    region = {"region_id": 1, "width": 82, "height": 139, "image_id": 1, "phrase": "a clock " * 8, "y": 57, "x": 421}
    image = json.dumps({"regions": [region] * 50, "id": 1})
    put(tmp_path / "region_descriptions.json", f"[{','.join([image] * 600)}]".encode())
    (tmp_path / "images").mkdir()
    path = tmp_path / "region_descriptions.json"
    source = open_source({"source": "vg", "paths": [str(path)], "options": {"images": [str(tmp_path / "images")]}})
    tracemalloc.start()
    assert sum(1 for _ in source) == 600
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.position == source.size == path.stat().st_size > 4.5e6
    assert peak < 2e6
