"""The parquet table beside an img2dataset tar supplies what the members of the tar lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from made import photo

from data_tools.readers.img2dataset import NO_TABLE, Img2datasetSource
from data_tools.record import Dropped, Record
from tests.tars import write_tar


def test_columns_and_captions_of_the_table_are_joined_by_key(tmp_path: Path) -> None:
    members = {f"{key}.jpg": photo(1, size=(20, 16)) for key in ("000000000", "000000001", "000000002")}
    members["000000001.json"] = json.dumps({"caption": "from the tar", "similarity": 0.9}).encode()
    write_tar(tmp_path / "00000.tar", sorted(members.items()))
    columns: dict[str, list[Any]] = {
        "key": ["000000002", "000000000", "000000001", "000000003"],
        "caption": ["two", "zero", "one", "three"],
        "similarity": [0.2, 0.0, 0.1, 0.3],
        "status": ["success"] * 3 + ["failed_to_download"],
        "error_message": [None] * 3 + ["HTTP Error 404: Not Found"],
        "url": [f"http://host/{number}" for number in (2, 0, 1, 3)],
    }
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    *records, failed = Img2datasetSource([tmp_path])
    found = {}
    for record in records:
        assert isinstance(record, Record)
        found[record.key] = (list(record.captions), record.fields["similarity"], record.fields["url"])
    assert found == {
        "000000000": (["zero"], 0.0, "http://host/0"),
        "000000001": (["from the tar"], 0.9, "http://host/1"),
        "000000002": (["two"], 0.2, "http://host/2"),
    }
    assert isinstance(failed, Dropped)
    assert (failed.key, failed.reason) == ("000000003", "download failed (HTTP 404)")


def test_without_a_table_the_images_are_kept_and_its_absence_is_listed(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", [("000000000.jpg", photo(1, size=(20, 16))), ("000000000.txt", b"words")])
    record, missing = Img2datasetSource([tmp_path])
    assert isinstance(record, Record)
    assert record.captions == [b"words"]
    assert isinstance(missing, Dropped)
    assert missing.reason == NO_TABLE


def test_rows_of_a_table_without_captions_are_outlined_without_any(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"key": ["000000000"], "status": ["success"], "error_message": [""]}), tmp_path / "00000.parquet"
    )
    (record,) = Img2datasetSource([tmp_path]).outline()
    assert isinstance(record, Record)
    assert not any(record.captions)


def test_a_table_without_statuses_is_counted_as_it_is_sharded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["000000000"], "jpg": [photo(1, size=(20, 16))]}), tmp_path / "00000.parquet")
    source = Img2datasetSource([tmp_path])
    for (item,) in (source, source.outline()):
        assert isinstance(item, Dropped)
        assert item.reason == "img2dataset gives no success"
