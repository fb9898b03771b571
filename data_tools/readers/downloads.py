"""How downloaders name the image of a URL. Nothing is guessed: that could pair images with the wrong captions."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mvlm.data.images.encoded import EXTENSIONS
from mvlm.errors import UserError

from .annotated import check_file
from .members import is_inside

NAMINGS = ("row0", "row1", "md5", "crc32", "basename")
ENDINGS = ("", *(f".{extension}" for extension in EXTENSIONS), ".JPG", ".JPEG", ".PNG", ".TIF", ".TIFF")

Places = Callable[[int, str], Sequence[str]]
"""The paths at which a row's image may lie, by the row's number, counted from 0, and its URL."""


def places(naming: str, images: Sequence[str]) -> Places:
    """The paths, within the image folders, at which a row's image may lie.

    Args:
        naming: "row0" or "row1": the row's number, counted from 0 or 1 and padded with zeros as the files are;
            "md5": of the URL, in hexadecimal; "crc32": ROW_CRC or CRC, the row counted from 0 and the URL's CRC-32,
            both decimal; "basename": the last part of the URL's path. All lie directly in the folder, and all but the
            last may have any of `ENDINGS`. Anything else is a text file with a line `URL<TAB>path within the folder`
            for each image, which is held in memory.

    Raises:
        UserError: `naming` is none of these, nor such a file.
    """
    if naming in ("row0", "row1"):
        first, widths = int(naming[-1]), _widths(images)
        return lambda row, url: [f"{number}{e}" for number in _padded(row + first, widths) for e in ENDINGS]
    if naming == "md5":
        return lambda row, url: _extended(hashlib.md5(_bytes(url), usedforsecurity=False).hexdigest())
    if naming == "crc32":
        return lambda row, url: [
            *_extended(f"{row}_{zlib.crc32(_bytes(url))}"),
            *_extended(str(zlib.crc32(_bytes(url)))),
        ]
    if naming == "basename":
        return _basename
    mapping = _read_mapping(Path(naming))
    return lambda row, url: [mapping[url]] if url in mapping else []


def _bytes(url: str) -> bytes:
    return url.encode("utf-8", "surrogateescape")


def _extended(stem: str) -> list[str]:
    return [stem + extension for extension in ENDINGS]


def _basename(row: int, url: str) -> list[str]:
    try:
        path = urlsplit(url).path.rpartition("/")[2]
    except ValueError:
        return []
    names = dict.fromkeys((path, unquote(path)))
    return [name for name in names if name not in ("", ".", "..") and "/" not in name]


def _padded(number: int, widths: Sequence[int]) -> Iterator[str]:
    return iter(dict.fromkeys(f"{number:0{width}d}" for width in widths))


def _widths(folders: Sequence[str]) -> list[int]:
    """How many digits the names of files have that are only a number; 1 for no padding."""
    found = {1}
    for folder in filter(os.path.isdir, folders):
        with os.scandir(folder) as entries:
            stems = (entry.name.partition(".")[0] for entry in entries)
            found |= {len(stem) for stem in stems if stem.startswith("0") and stem.isascii() and stem.isdigit()}
    return sorted(found)


def _read_mapping(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UserError(f"--names {path} is not a file and none of {', '.join(NAMINGS)}: give one of them.")
    check_file(path)
    mapping = {}
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            url, tab, name = line.rstrip("\r\n").partition("\t")
            if not tab or not is_inside(name):
                raise UserError(f"{path} line {number} is not URL<TAB>path within the image folder: fix it.")
            mapping[url] = name
    return mapping
