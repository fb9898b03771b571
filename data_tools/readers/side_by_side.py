"""Pictures with a text file beside each: `bus.jpg` and `bus.txt`, in a folder and those below."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

from mvlm.data.images.encoded import EXTENSIONS
from mvlm.errors import UserError

from ..part import Cursor, Unit
from ..record import Dropped, Record
from .annotated import UTF_16, mean_size
from .images import MISSING_IMAGE, Refused, read_inside

TEXT = ".txt"
NO_TEXT = "no text file beside the image"
AMBIGUOUS = "two images of one name"


class SideBySideSource:
    """folders of images with a text file beside each, NAME.jpg and NAME.txt, one caption a line; key: the path without
    its extension; source: the folder's name"""

    def __init__(self, paths: list[Path]) -> None:
        for path in paths:
            if not path.is_dir():
                raise UserError(f"No folder at {path}: give one of images, with a text file beside each.")
        self._folders = [(path.resolve(), dict(sorted(_pairs(path).items()))) for path in paths]
        self.only: Container[str] | None = None
        self.size = sum(len(pairs) for _, pairs in self._folders)  # pairs, of which each counts as one byte
        self.position = 0

    def __iter__(self) -> Iterator[Record | Dropped]:
        return self.read()

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
    """For each key the images that have it, by their paths within the folder: one, or none beside its text."""
    pairs: dict[str, list[str]] = {}
    for file in folder.rglob("*"):
        suffix, path = file.suffix.lower(), file.relative_to(folder)
        if suffix == TEXT or suffix[1:] in EXTENSIONS:
            images = pairs.setdefault(str(path.with_suffix("")), [])
            images += [str(path)] if suffix != TEXT else []
    if not any(pairs.values()):
        raise UserError(f"{folder} holds no image: give a folder of images, with a text file beside each.")
    return pairs


def _record(folder: Path, key: str, images: list[str], where: str) -> Record | Dropped:
    def dropped(reason: str) -> Dropped:
        return Dropped(key, reason, where, source=folder.name)

    if len(images) > 1:
        return dropped(AMBIGUOUS)
    try:
        text = read_inside(folder, key + TEXT)
        image = read_inside(folder, images[0]) if images else None
    except Refused as refused:
        return dropped(str(refused))
    if image is None:
        return dropped(MISSING_IMAGE)
    if text is None:
        return dropped(NO_TEXT)
    captions = [line for line in _decoded(text).splitlines() if line.strip()]
    return Record(key, image, captions, folder.name, where=where)


def _decoded(text: bytes) -> str:
    """UTF-8, or UTF-16 where a byte-order mark says so, as Windows' editors write it; what is neither is found out by
    the check of all captions."""
    if text.startswith(UTF_16):
        try:
            return text.decode("utf-16")
        except UnicodeDecodeError:
            pass
    return text.decode("utf-8-sig", "surrogateescape")
