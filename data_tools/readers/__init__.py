"""Where records come from. A new source is one file with a class and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from data_tools.readers.folder import FolderSource
from data_tools.readers.webdataset import WebdatasetSource
from data_tools.record import Dropped, Record


class Source(Protocol):
    """Records in a fixed order. `position` of `size` bytes of input are read, for the progress bar."""

    size: int
    position: int

    def __iter__(self) -> Iterator[Record | Dropped]: ...


SOURCES: dict[str, Callable[[list[Path]], Source]] = {"folder": FolderSource, "webdataset": WebdatasetSource}
"""By name: takes the paths of the command line and raises `UserError` where they cannot be read at all."""
