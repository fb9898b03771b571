"""What comes from a reader: a record as it was read, or one that was dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mvlm.data.shards.in_place import PlaceInFile


@dataclass(frozen=True)
class Record:
    """One image with its captions, or with the columns of another task, as the source gave them; nothing is checked.

    Captions are of any type, because a source may hold null or bytes; `data_tools.filters` cleans them and the texts
    among `columns`, whose names and types are those of `mvlm.data.shards.schema.OWN_COLUMNS`.
    """

    key: str
    image: bytes  # an encoded file
    captions: Sequence[object] = ()  # of the task "caption" alone
    source: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)  # whatever else the source says about the record
    where: str = ""  # file and line or member, for messages
    image2: bytes = b""  # of the task "nlvr2" alone: the right image
    place: PlaceInFile | None = None  # in the file in which the image is to stay
    columns: Mapping[str, Any] = field(default_factory=dict)  # of the other tasks: their own columns, all of them

    def __str__(self) -> str:
        return f"{self.key} ({self.where})"


@dataclass(frozen=True)
class Dropped:
    """A record that is not kept. `reason` is one of a few fixed phrases, which are counted; `detail` is free.

    A source can be asked for it again by `where` alone (`Source.only`).
    """

    key: str
    reason: str
    where: str
    detail: str = ""
    source: str = ""

    def __str__(self) -> str:
        return f"{self.key} ({self.where})"


def as_text(value: Any, **form: Any) -> str:
    """A field's value as JSON, with the options `form` of `json.dumps`; texts, and what JSON does not know, such as
    dates, without quotes."""
    return json.dumps(value, default=str, **form) if isinstance(value, int | float | list | dict) else str(value)
