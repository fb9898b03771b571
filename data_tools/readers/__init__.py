"""Where records come from. A new source is one file with a class or function and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable

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
from .source import Source
from .table import table
from .urls import UrlSource
from .vg import vg
from .vg_qa import vg_qa
from .vqa import vqa
from .webdataset import WebdatasetSource

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
"""By name: takes the paths of the command line and the source's own options, and raises `UserError` if they cannot be
read at all. Its docstring tells users what paths and options it takes. The last five make rows of other tasks."""

AT_URLS = {"webdataset", "img2dataset", "hf", "folder"}
"""Sources whose paths may be URLs."""
