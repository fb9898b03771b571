"""Tables, and pictures with a text file beside each, as people have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from made import photo, quarantine, read_rows, run
from samples import csv_table, put, side_by_side


def test_a_picture_needs_one_text_and_a_text_one_picture(tmp_path: Path) -> None:
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


def test_a_table_that_names_no_columns_is_told_what_it_lacks(tmp_path: Path, fails: Callable[..., str]) -> None:
    put(tmp_path / "bare.csv", b"1.jpg;a bus\n2.jpg;a train\n")
    said = fails("shard", "table", tmp_path / "bare.csv", "--out", tmp_path / "out")
    assert "has the columns 1.jpg, a bus: say which with --image-column" in said
    path = csv_table(tmp_path).argv[1]
    said = fails("shard", "table", path, "--caption-column", "words", "--out", tmp_path / "out")
    assert "say which with --caption-column" in said


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
