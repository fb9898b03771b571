"""Shards as sequences of rows in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import mvlm
from mvlm.data.images.decode import load_image
from mvlm.errors import UserError


def test_rows_are_those_of_the_files(scenes: Path) -> None:
    files = sorted((scenes / "train").glob("*.arrow"))
    table = pa.concat_tables(pa.ipc.open_file(file).read_all() for file in files).to_pylist()
    rows = mvlm.open(scenes / "train")
    assert len(rows) == len(table) and f"{len(table)} rows" in repr(rows)
    for row, expected in zip(rows, table, strict=True):
        assert (row.key, row.captions, row.source) == (expected["key"], expected["captions"], expected["source"])
    assert rows[3].encoded == table[3]["image"]
    np.testing.assert_array_equal(np.asarray(rows[3].image), np.asarray(load_image(table[3]["image"])))
    assert rows[3].image.size == (rows[3].width, rows[3].height)
    assert [row.key for row in rows[-2:]] == [row["key"] for row in table[-2:]]
    both = mvlm.open([scenes / "train", scenes / "eval"])
    assert both[len(table)].key == mvlm.open(scenes / "eval")[0].key
    with pytest.raises(IndexError):
        rows[len(table)]


def test_a_path_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="manifest"):
        mvlm.open(tmp_path)
    with pytest.raises(UserError, match="No shard folder"):
        mvlm.open([])
    with pytest.raises(UserError, match="path of the data is empty"):
        mvlm.open("")
    with pytest.raises(UserError, match="by their path, and not as a tuple"):
        mvlm.open([("bus.jpg", "a bus")])
