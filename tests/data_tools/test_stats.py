"""`stats` describes a corpus as text, as JSON and as plots."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from made import read_rows, run
from made_corpus import caption_rows, write_corpus
from PIL import Image

from data_tools.__main__ import main
from data_tools.inspect.stats import BINS


def stats_of(capsys: pytest.CaptureFixture[str], folder: Path) -> dict:
    capsys.readouterr()
    run("stats", folder, "--json")
    return json.loads(capsys.readouterr().out)


def test_statistics_agree_with_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = caption_rows(23)
    for number, row in enumerate(rows):
        row["captions"] = [" ".join(["wörd"] * (1 + number % 4)), "two words"][: 1 + number % 2]
        row["width"] = 30 + number * number
        row["source"] = "made" if number % 3 else ""
    stats = stats_of(capsys, write_corpus(tmp_path / "c", rows))
    captions = [caption for row in rows for caption in row["captions"]]
    values = {
        "width": [row["width"] for row in rows],
        "height": [30] * 23,
        "bytes": [len(row["image"]) for row in rows],
        "captions": [len(row["captions"]) for row in rows],
        "words": [len(caption.split()) for caption in captions],
        "characters": [len(caption) for caption in captions],
    }
    assert (stats["rows"], stats["captions"], stats["image_bytes"]) == (23, len(captions), sum(values["bytes"]))
    assert stats["counts"] == {"source": {"made": 15, "": 8}}
    assert stats["distributions"].keys() == values.keys()
    for name, numbers in values.items():
        spread = stats["distributions"][name]
        assert (spread["min"], spread["max"]) == (min(numbers), max(numbers))
        assert spread["mean"] == pytest.approx(np.mean(numbers))
        for quantile, share in {"5 %": 0.05, "median": 0.5, "95 %": 0.95}.items():
            assert spread[quantile] == np.quantile(numbers, share, method="nearest")
        edges, counts = spread["histogram"]["edges"], spread["histogram"]["counts"]
        assert len(edges) == len(counts) + 1 <= BINS + 1
        assert counts == [sum(a <= value < b for value in numbers) for a, b in pairwise(edges)]
        assert sum(counts) == len(numbers)


def test_answers_and_labels_of_other_tasks_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("synth", "--task", "vqa", "--count", 300, "--out", tmp_path / "vqa")
    rows = read_rows(tmp_path / "vqa")
    stats = stats_of(capsys, tmp_path / "vqa")
    assert stats["task"] == "vqa"
    yes = sum(row["answers"][0] == "yes" for row in rows)
    assert 0 < stats["counts"]["answers"]["yes"] == yes
    assert sum(stats["counts"]["question_type"].values()) == 300
    for row in rows[::2]:
        row["answers"] = []  # as in a test set, whose answers are kept secret
    stats = stats_of(capsys, write_corpus(tmp_path / "secret", rows, "vqa"))
    assert sum(stats["counts"]["answers"].values()) == 150
    run("synth", "--task", "pairs", "--count", 80, "--out", tmp_path / "pairs")
    stats = stats_of(capsys, tmp_path / "pairs")
    assert stats["counts"]["label"] == {"true": 40, "false": 40}


def test_text_names_tasks_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["synth", "--task", "foils", "--count", 60, "--split", "train=0.6,eval=0.4"]
    run(*argv, "--out", tmp_path / "foils")
    capsys.readouterr()
    run("stats", tmp_path / "foils")
    text = capsys.readouterr().out
    assert re.search(r"foils/eval: \d+ foils rows", text)
    assert re.search(r"foils/train: \d+ foils rows", text)
    neighbours = r"in a batch of \d+, [\d.]+% of the rows have another .* within 5 rows of them in the source \(\d"
    assert len(re.findall(neighbours, text)) == 2
    assert "swapped" in text


HOSTILE = "<script>alert(1)</script> $\\frac{$ "


def test_plots_are_one_image_or_one_page(tmp_path: Path) -> None:
    rows = caption_rows(9)
    for number, row in enumerate(rows):
        row["source"] = HOSTILE + "x" * 30 * (number % 2) + str(number)
    corpus = write_corpus(tmp_path / "c", rows)
    run("stats", corpus, "--plots", tmp_path / "made/p.png")
    with Image.open(tmp_path / "made/p.png") as image:
        image.load()
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10, "bars, axes or letters are missing"
    run("stats", corpus, "--plots", tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 1


def test_plots_need_a_known_extension_and_a_free_name(tmp_path: Path, fails: Callable[..., str]) -> None:
    corpus = write_corpus(tmp_path / "c", caption_rows(2))
    with pytest.raises(SystemExit) as stopped:
        main(["stats", str(corpus), "--plots", str(tmp_path / "p.jpg")])
    assert stopped.value.code == 2
    (tmp_path / "p.png").write_bytes(b"mine")
    assert "exists already" in fails("stats", corpus, "--plots", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() == b"mine"


def test_a_damaged_shard_is_named(tmp_path: Path, fails: Callable[..., str]) -> None:
    corpus = write_corpus(tmp_path / "c", caption_rows(9))
    path = corpus / "000001.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    assert "000001.arrow" in fails("stats", corpus)


def test_a_wide_range_of_values_needs_no_more_bins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = caption_rows(3)
    for row, width in zip(rows, (1, 90_000, 1_000_000), strict=True):
        row["width"] = width
    histogram = stats_of(capsys, write_corpus(tmp_path / "c", rows))["distributions"]["width"]["histogram"]
    assert len(histogram["counts"]) <= BINS
    assert sum(histogram["counts"]) == 3
