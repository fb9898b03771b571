"""Where records come from. A new source is one file with a class or function and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Protocol, runtime_checkable

from ..part import Cursor, Unit
from ..record import Dropped, Record
from .cc import cc
from .coco import coco
from .entailment import entailment
from .folder import FolderSource
from .hf import HfSource
from .iconify import IconifyFoilsSource, IconifySource
from .img2dataset import Img2datasetSource
from .karpathy import karpathy
from .nlvr2 import nlvr2
from .sbu import sbu
from .side_by_side import SideBySideSource
from .table import table
from .urls import UrlSource
from .vg import vg
from .vg_qa import vg_qa
from .vqa import vqa
from .webdataset import WebdatasetSource


class Source(Protocol):
    """Records in a fixed order, each time it is iterated. An image that is missing or refused gives a `Dropped`.

    `position` of `size` bytes of input are read, for the progress bar. `only`, if set, are the records to give, by
    their `where`: others' images are not read.
    """

    size: int
    position: int
    only: Container[str] | None

    def __iter__(self) -> Iterator[Record | Dropped]: ...


@runtime_checkable
class Cuttable(Source, Protocol):
    """A source that can be made in parts; of any other, all is one part."""

    def units(self) -> Iterator[Unit]:
        """In order, where it can be cut, and about how many bytes of images each piece has."""
        ...

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        """The records from one such place up to another."""
        ...


SOURCES: dict[str, Callable[..., Source]] = {
    "coco": coco,
    "karpathy": karpathy,
    "cc": cc,
    "sbu": sbu,
    "vg": vg,
    "webdataset": WebdatasetSource,
    "img2dataset": Img2datasetSource,
    "hf": HfSource,
    "folder": FolderSource,
    "side_by_side": SideBySideSource,
    "table": table,
    "urls": UrlSource,
    "iconify": IconifySource,
    "vqa": vqa,
    "vg_qa": vg_qa,
    "nlvr2": nlvr2,
    "entailment": entailment,
    "iconify_foils": IconifyFoilsSource,
}
"""By name: takes the paths of the command line and the source's own options, and raises `UserError` where they cannot
be read at all. The docstring tells users what paths and options it takes; the last five make rows of their tasks."""

AT_URLS = {"webdataset", "img2dataset", "hf", "folder"}
"""Sources whose paths may be URLs."""
