"""Where records come from. A new source is one file with a class or function and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Protocol

from data_tools.readers.cc import cc
from data_tools.readers.coco import coco
from data_tools.readers.entailment import entailment
from data_tools.readers.folder import FolderSource
from data_tools.readers.hf import HfSource
from data_tools.readers.img2dataset import Img2datasetSource
from data_tools.readers.karpathy import karpathy
from data_tools.readers.nlvr2 import nlvr2
from data_tools.readers.sbu import sbu
from data_tools.readers.side_by_side import SideBySideSource
from data_tools.readers.table import table
from data_tools.readers.vg import vg
from data_tools.readers.vg_qa import vg_qa
from data_tools.readers.vqa import vqa
from data_tools.readers.webdataset import WebdatasetSource
from data_tools.record import Dropped, Record


class Source(Protocol):
    """Records in a fixed order, each time it is iterated. An image that is missing or refused gives a `Dropped`.

    `position` of `size` bytes of input are read, for the progress bar. `only`, if set, are the records to give, by
    their `where`: others' images are not read.
    """

    size: int
    position: int
    only: Container[str] | None

    def __iter__(self) -> Iterator[Record | Dropped]: ...


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
    "vqa": vqa,
    "vg_qa": vg_qa,
    "nlvr2": nlvr2,
    "entailment": entailment,
}
"""By name: takes the paths of the command line and the source's own options, and raises `UserError` where they cannot
be read at all. The docstring tells users what paths and options it takes; the last four make rows of their tasks."""
