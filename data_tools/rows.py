"""From a record that was checked to the row that is written of it."""

from __future__ import annotations

from types import SimpleNamespace

from data_tools.check import Checked, Picture
from data_tools.record import Record
from mvlm.data.shards.schema import CAPTION, OWN_COLUMNS


def stored_row(record: Record, found: Checked) -> SimpleNamespace:
    """With all columns of the record's task as attributes."""
    first, *second = found.pictures
    row = SimpleNamespace(key=record.key, captions=found.captions, source=record.source, **found.columns)
    row.image, (row.width, row.height, row.crc32) = _stored(record.image, first)
    if second:
        row.image2, (row.width2, row.height2, row.crc32_2) = _stored(record.image2, second[0])
    return row


def _stored(image: bytes, picture: Picture) -> tuple[bytes, tuple[int, int, int]]:
    return picture.encoded or image, (picture.width, picture.height, picture.crc32)


def task_of(record: Record) -> str:
    """The task whose own columns the record has."""
    names = set(record.columns)
    tasks = [task for task, columns in OWN_COLUMNS.items() if {column.name for column in columns} == names]
    return tasks[0] if names else CAPTION
