"""Every source in its real format is converted, verified and read back, and retried after an image was missing."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from made import Corpus, quarantine, read_rows, run, tree
from samples import SAMPLES, Sample

from data_tools.__main__ import main
from mvlm.data.shards.schema import read_manifest

TASKS = {"vqa": "vqa", "vqa-test": "vqa", "vg_qa": "vqa", "nlvr2": "nlvr2", "entailment": "entailment"}
WITH_FILES = [
    name for name in SAMPLES if name != "cc12m" and not name.startswith(("hf", "img2dataset-w", "img2dataset-p"))
]


def shard(sample: Sample, out: Path, *more: object) -> None:
    run("shard", *sample.argv, "--out", out, "--workers", 1, *more)


def selected(rows: Corpus, expected: Corpus) -> Corpus:
    """The rows, reduced to the columns that are compared."""
    return [{name: row[name] for name in wanted} for row, wanted in zip(rows, expected, strict=True)]


def count(sample: Sample) -> dict[str, Any]:
    """The JSON that `count` prints for a sample."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        run("count", *sample.argv, "--json")
    return json.loads(printed.getvalue())


def reasons(listed: Corpus) -> Counter[str]:
    return Counter(entry["reason"] for entry in listed)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_source_is_converted_verified_and_read_back(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name](tmp_path / "in")
    shard(sample, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert [row["key"] for row in rows] == list(sample.rows)
    assert selected(rows, list(sample.rows.values())) == list(sample.rows.values())
    assert json.loads((tmp_path / "out/manifest.json").read_text())["task"] == TASKS.get(name, "caption")
    assert count(sample)["rows"] == len(rows)
    run("verify", tmp_path / "out", "--workers", 1)
    shards = b"".join(content for file, content in tree(tmp_path / "out").items() if file != "source.json")
    assert str(tmp_path).encode() not in shards


@pytest.mark.parametrize("name", WITH_FILES)
def test_a_missing_image_is_listed_and_retried(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name](tmp_path / "in")
    assert sample.image is not None
    away = sample.image.rename(tmp_path / "away")
    shard(sample, tmp_path / "out", "--tolerate", 1)
    listed = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    missing = [entry for entry in listed if entry["reason"] == "image is missing"]
    assert [entry["key"] for entry in missing] == sample.lost
    assert missing[0]["where"] == sample.where
    assert missing[0]["source"] == sample.rows[sample.lost[0]].get("source", missing[0]["source"])
    left = [key for key in sample.rows if key not in sample.lost]
    if "img2dataset" not in name:  # its tables say what was downloaded, not what was lost later
        assert count(sample) | {"pairs": 0} == {"rows": len(left), "pairs": 0, "dropped": dict(reasons(listed))}
    assert [row["key"] for row in read_rows(tmp_path / "out")] == left
    first = {file: data for file, data in tree(tmp_path / "out").items() if file.endswith(".arrow")}

    run("retry", tmp_path / "out", "--workers", 1)
    assert {file: data for file, data in tree(tmp_path / "out").items() if file.endswith(".arrow")} == first

    away.rename(sample.image)
    run("retry", tmp_path / "out", "--workers", 1)
    assert [row["key"] for row in read_rows(tmp_path / "out")] == left + sample.lost
    expected = [sample.rows[key] for key in left + sample.lost]
    assert selected(read_rows(tmp_path / "out"), expected) == expected
    assert first.items() <= tree(tmp_path / "out").items()
    assert set(quarantine(tmp_path / "out")) == {entry["key"] for entry in listed} - set(sample.lost)
    run("verify", tmp_path / "out", "--workers", 1)
    yielded = json.loads((tmp_path / "out/yield.json").read_text())
    assert (yielded["read"], yielded["kept"]) == (len(left) + len(listed), len(sample.rows))
    assert "image is missing" not in yielded["dropped"]


@pytest.mark.parametrize("name", WITH_FILES)
def test_a_link_out_of_the_image_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name](tmp_path / "in")
    assert sample.image is not None
    sample.image.symlink_to(sample.image.rename(tmp_path / "secret"))
    shard(sample, tmp_path / "out", "--tolerate", 1)
    listed = quarantine(tmp_path / "out")
    assert {listed[key] for key in sample.lost} == {"image path leaves the folder"}


@pytest.mark.parametrize("name", ["coco", "karpathy-coco", "sbu", "vg", "vqa"])
def test_json_cut_short_is_one_sentence(tmp_path: Path, name: str, fails: Callable[..., str]) -> None:
    sample = SAMPLES[name](tmp_path / "in")
    path = Path(sample.argv[1])
    path.write_bytes(path.read_bytes()[:-60])
    assert f"{path.name} is cut short or not JSON" in fails("shard", *sample.argv, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_with_an_unknown_task_is_refused(tmp_path: Path, fails: Callable[..., str]) -> None:
    sample = SAMPLES["vqa"](tmp_path / "in")
    shard(sample, tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    content = json.loads(path.read_text())
    assert content["captions"] == 0
    path.write_text(json.dumps(content | {"task": "chess"}))
    assert "unknown task 'chess'" in fails("verify", tmp_path / "out")
    # Without a task, the rows are taken for captions.
    del content["task"]
    path.write_text(json.dumps(content))
    assert read_manifest(tmp_path / "out").task == "caption"
    assert main(["verify", str(tmp_path / "out")]) == 1
