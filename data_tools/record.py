"""What travels from a reader to the writer: a record as read, one that was dropped, a row that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One image with its captions as the source gave them; nothing is checked yet.

    Captions are of any type, because a source may hold null or bytes; `data_tools.check` cleans them.
    """

    key: str
    image: bytes  # an encoded file
    captions: Sequence[object]
    source: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)  # whatever else the source says of the record
    where: str = ""  # file and line or member, for messages

    def __str__(self) -> str:
        return f"{self.key} ({self.where})"


@dataclass(frozen=True)
class Dropped:
    """A record that is not kept. `reason` is one of a few fixed phrases, which are counted; `detail` is free."""

    key: str
    reason: str
    where: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.key} ({self.where})"


@dataclass(frozen=True)
class Row:
    """A row of `mvlm.data.schema.SCHEMA`, field by field."""

    key: str
    image: bytes
    captions: tuple[str, ...]
    source: str
    width: int
    height: int
    crc32: int
