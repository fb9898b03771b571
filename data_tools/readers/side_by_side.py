"""Pictures with a text file beside each: `bus.jpg` and `bus.txt`, in a folder and its subfolders."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePath

from mvlm.data.images.encoded import EXTENSIONS, OTHERS
from mvlm.errors import UserError

from ..part import Cursor, Unit
from ..record import Dropped, Record
from .annotated import UTF_16, mean_size
from .images import MISSING_IMAGE, Refused, read_inside
from .source import Cuttable

NO_TEXT = "no text file beside the image"
AMBIGUOUS = "two images of one name"


class SideBySideSource(Cuttable):
    """folders of images with a text file beside each, NAME.jpg and NAME.txt, one caption per line; key: the path
    without its extension; source: the folder's name"""

    def __init__(self, paths: list[Path]) -> None:
        for path in paths:
            if not path.is_dir():
                raise UserError(f"No folder at {path}: give one of images, with a text file beside each.")
        self._folders = [(path.resolve(), dict(sorted(_pairs(path).items()))) for path in paths]
        self.size = sum(len(pairs) for _, pairs in self._folders)  # each pair counts as one byte

    def units(self) -> Iterator[Unit]:
        """The pairs."""
        size = mean_size(self)
        for place, (_, pairs) in enumerate(self._folders):
            yield from (((place, number), size) for number in range(len(pairs)))

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        self.position = 0
        for place, (folder, pairs) in enumerate(self._folders):
            for number, key in enumerate(pairs):
                if (place, number) < start:
                    continue
                if end is not None and (place, number) >= end:
                    return
                self.position += 1
                where = f"{folder.name}/{key}"
                if self.only is None or where in self.only:
                    yield _record(folder, key, pairs[key], where)


def _pairs(folder: Path) -> dict[str, list[str]]:
    """The files of each key that has an image or a text, by their paths within the folder."""
    pairs: dict[str, list[str]] = {}
    for file in folder.rglob("*"):
        if _is_text(file.name) or _is_image(file.name) or _kind(file.name) in OTHERS:
            path = file.relative_to(folder)
            pairs.setdefault(str(path.with_suffix("")), []).append(str(path))
    if not any(map(_is_image, chain.from_iterable(pairs.values()))):
        raise UserError(f"{folder} holds no image: give a folder of images, with a text file beside each.")
    return {key: files for key, files in pairs.items() if any(_is_text(file) or _is_image(file) for file in files)}


def _kind(name: str) -> str:
    return PurePath(name).suffix[1:].lower()


def _is_text(name: str) -> bool:
    return _kind(name) == "txt"


def _is_image(name: str) -> bool:
    return _kind(name) in EXTENSIONS


def _record(folder: Path, key: str, files: list[str], where: str) -> Record | Dropped:
    def dropped(reason: str) -> Dropped:
        return Dropped(key, reason, where, source=folder.name)

    images, texts = list(filter(_is_image, files)), sorted(filter(_is_text, files))
    if len(images) > 1:
        return dropped(AMBIGUOUS)
    others = [file for file in files if _kind(file) in OTHERS]  # the check of images tells what they are
    try:
        text = read_inside(folder, texts[-1]) if texts else None
        image = next((read_inside(folder, file) for file in images + others), None)
    except Refused as refused:
        return dropped(str(refused))
    if image is None:
        return dropped(MISSING_IMAGE)
    if text is None:
        return dropped(NO_TEXT)
    # Only at a file's line ends: `splitlines` would also split at others within a caption, such as a form feed.
    captions = [line for line in io.StringIO(_decoded(text), newline=None) if line.strip()]
    return Record(key, image, captions, folder.name, where=where)


def _decoded(text: bytes) -> str:
    """UTF-8, or UTF-16 if a byte-order mark says so, as Windows editors write it; the check of captions finds what is
    neither."""
    if text.startswith(UTF_16):
        try:
            return text.decode("utf-16")
        except UnicodeDecodeError:
            pass
    return text.decode("utf-8-sig", "surrogateescape")
