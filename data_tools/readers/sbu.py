"""SBU captions: the published JSON of `image_urls` and `captions`, with a folder of downloads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from mvlm.errors import UserError

from .annotated import Annotated, Annotation, At, one_file, text
from .downloads import places
from .json_stream import json_items


def sbu(paths: list[Path], images: list[str], names: str = "basename") -> Annotated:
    """sbu-captions-all.json; --images: the folder of downloads; --names: how its files are named (default: basename;
    or row0, row1, md5, crc32, or a file of url<TAB>path); key: the row, counted from 0"""
    path = one_file(paths, "sbu")
    place = places(names, images)

    def entry(item: tuple[object, object], at: At) -> Annotation:
        url, caption = text(item[0]), item[1]
        return Annotation(f"{at.number:07d}", place(at.number, url), [caption], {"url": url})

    return Annotated([path], images, _items, entry, "sbu")


def _items(file: BinaryIO) -> Iterator[Any]:
    """Pairs of URL and caption from the two lists, each of which is read by a handle of its own."""
    end = object()
    with open(file.name, "rb") as other:
        for url, caption in zip_longest(
            json_items(file, "image_urls.item"), json_items(other, "captions.item"), fillvalue=end
        ):
            if url is end or caption is end:
                raise UserError(f"{file.name} has not as many captions as image_urls: download it again.")
            yield url, caption
