"""Which of Visual Genome's phrases and questions are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from made import read_rows, run
from samples import SAMPLES, put_json

from data_tools.readers.vg import largest
from data_tools.readers.vg_qa import MINIMUM
from mvlm.config.schema import Task


def regions(*sized: tuple[int, int, str]) -> list[dict[str, object]]:
    return [{"width": width, "height": height, "phrase": phrase} for width, height, phrase in sized]


def test_phrases_of_the_largest_regions_are_kept_once_each() -> None:
    found = regions(
        (10, 10, "a small red bus on grass"),
        (50, 2, "the front of a BUS"),  # as large as the first, but a duplicate
        (90, 90, "red bus"),  # too short
        (40, 40, "The front  of a bus"),  # the same phrase for a larger region
        (30, 60, "people that wait for a bus"),
        (1, 9, "a wheel of the red bus"),
    )
    ordered = [
        "people that wait for a bus",
        "The front  of a bus",
        "a small red bus on grass",
        "a wheel of the red bus",
    ]
    assert largest(found, 8) == ordered
    assert largest(found, 2) == ordered[:2]


def test_eight_phrases_of_an_image_are_kept_or_as_many_as_asked_for(tmp_path: Path) -> None:
    sample = SAMPLES["vg"](tmp_path / "in")
    phrases = [f"thing number {n} on the table" for n in range(9)] + ["short"]
    listed = [
        region | {"region_id": n, "y": 0, "x": 0} for n, region in enumerate(regions(*((9, 9, p) for p in phrases)))
    ]
    put_json(sample.argv[1], [{"regions": listed, "id": 1}])
    for options, count in (((), 8), (("--phrases", 3), 3), (("--phrases", 0), 10)):
        out = tmp_path / f"out{count}"
        run("shard", *sample.argv, *options, "--out", out, "--workers", 1)
        assert [row["captions"] for row in read_rows(out)] == [phrases[:count]]


def test_frequent_answers_are_those_that_training_keeps() -> None:
    assert Task().answer_minimum == MINIMUM


def test_annotations_of_another_kind_are_one_sentence(tmp_path: Path, fails: Callable[..., str]) -> None:
    sample = SAMPLES["vg_qa"](tmp_path / "in")
    put_json(sample.argv[3], {"annotations": [{"caption": "of COCO"}]})
    assert "has no VQA annotations" in fails("shard", *sample.argv, "--out", tmp_path / "out")
