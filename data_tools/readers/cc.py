"""Conceptual Captions: the published TSV (`Train_GCC-training.tsv`; CC12M's too), with a folder of downloads."""

from __future__ import annotations

from pathlib import Path

from mvlm.errors import UserError

from .annotated import Annotated, Annotation, At, Unfit, located_lines, one_file
from .downloads import places


def cc(paths: list[Path], images: list[str], names: str) -> Annotated:
    """one TSV of caption<TAB>url, or url<TAB>caption as in CC12M; --images: the folder of downloads; --names: how its
    files are named (row0, row1, md5, crc32, or a file of url<TAB>path); key: the row, counted from 0"""
    path = one_file(paths, "cc")
    if names == "basename":
        raise UserError("--names basename would mix up the many URLs that end alike: give another naming.")
    place = places(names, images)

    def entry(line: bytes, at: At) -> Annotation:
        first, tab, second = line.rstrip(b"\r\n").partition(b"\t")
        if not tab:
            raise Unfit("row is not caption<TAB>url")
        caption, url = (second, first) if _is_url(first) else (first, second)
        if not _is_url(url):
            raise Unfit("row has no URL")
        address = url.decode("utf-8", "surrogateescape")
        return Annotation(
            f"{at.number:08d}", place(at.number, address), [caption], {"url": url.decode("utf-8", "replace")}
        )

    return Annotated([path], images, located_lines, entry, "cc", seekable=True)


def _is_url(value: bytes) -> bool:
    return value.startswith((b"http://", b"https://"))
