"""What sources with files of annotations beside folders of images have in common."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from mvlm.errors import UserError

from ..part import Cursor, Unit
from ..record import Dropped, Record
from .images import ImageFolders, Refused
from .json_stream import parse_json
from .members import MAX_TEXT_BYTES
from .source import Cuttable

MALFORMED = "annotation is malformed"
ZIP = b"PK\3\4"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

SAMPLE = 64
"""Records from which the images' mean size is estimated, since looking at all of them would take too long."""


class Unfit(Exception):
    """An annotation that makes no record; the message is the reason."""


@dataclass(frozen=True)
class Annotation:
    """What an annotation says about one record. `images` are the paths at which its image may lie."""

    key: str
    images: Sequence[str]
    captions: Sequence[object] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    right: Sequence[str] = ()  # paths of a second image
    columns: Mapping[str, Any] = field(default_factory=dict)


Items = Callable[[BinaryIO], Iterator[Any]]
"""The annotations of a file from its position on, in order, as JSON values, lines or rows; if files can be read from
the middle on, each with the offset at which it begins."""


@dataclass(frozen=True)
class At:
    """Where an annotation is: the file's name, and the annotation's number in it, counted from 0."""

    file: str
    number: int


Parse = Callable[[Any, At], Annotation | None]
"""What an item of a file says, or None if it was not asked for; may raise `Unfit` and whatever an item of an unexpected
shape leads to."""


ImageAt = Callable[[Sequence[str]], bytes]
"""The image at the first of these paths that has one; raises `Refused`."""


class Annotated(Cuttable):
    """A source of annotation files, read one after the other; memory does not grow with the images.

    `where` of the record from the annotation number n, counted from 1, is "FILE:n".

    Args:
        seekable: whether `items` gives offsets, so that a file can be cut into parts.

    Raises:
        UserError: a file cannot be read, or (while iterating) is not JSON.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        images: Sequence[str],
        items: Items,
        parse: Parse,
        source: str,
        seekable: bool = False,
    ) -> None:
        for path in paths:
            check_file(path)
        self._paths, self._images = paths, ImageFolders(images)
        self._items, self._parse, self._source, self._seekable = items, parse, source, seekable
        self.size = sum(path.stat().st_size for path in paths)

    def units(self) -> Iterator[Unit]:
        """Annotations, or whole files if finding an annotation takes reading its file from the start."""
        if not self._seekable:
            yield from (((number,), path.stat().st_size) for number, path in enumerate(self._paths))
            return
        size = mean_size(self)
        for number, path in enumerate(self._paths):
            with path.open("rb") as file:
                yield from (((number, offset, item), size) for item, (offset, _) in enumerate(self._items(file)))

    def read(self, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        return self._records(self._images.read, start, end)

    def outline(self) -> Iterator[Record | Dropped]:
        """The same without the images' bytes: that an image exists is checked, but it is not read."""
        return self._records(self._images.look_for)

    def _records(self, image_at: ImageAt, start: Cursor = (), end: Cursor | None = None) -> Iterator[Record | Dropped]:
        before = self.position = 0
        for place, path in enumerate(self._paths):
            if (place,) >= start[:1]:
                for number, item, position in self._annotations(path, place, start, end):
                    self.position = before + position
                    where = f"{path.name}:{number + 1}"
                    if self.only is None or where in self.only:
                        yield from self._record(item, At(path.name, number), where, image_at)
            before += path.stat().st_size

    def _annotations(self, path: Path, place: int, start: Cursor, end: Cursor | None) -> Iterator[tuple[int, Any, int]]:
        """The annotations of a file, each with its number and how far the file has been read."""
        offset, first = start[1:] if start[:1] == (place,) and self._seekable else (0, 0)
        with path.open("rb") as file:
            file.seek(offset)
            for number, item in enumerate(self._items(file), first):
                if self._seekable:
                    offset, item = item
                if end is not None and (place, offset, number) >= end:
                    return
                yield number, item, file.tell()

    def _record(self, item: Any, at: At, where: str, image_at: ImageAt) -> Iterator[Record | Dropped]:
        try:
            entry = self._parse(item, at)
        except Unfit as unfit:
            yield Dropped("", str(unfit), where, source=self._source)
            return
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            yield Dropped("", MALFORMED, where, f"{type(error).__name__}: {error}"[:200], self._source)
            return
        if entry is None:
            return
        try:
            image = image_at(entry.images)
            image2 = image_at(entry.right) if entry.right else b""
        except Refused as refused:
            places = " or ".join((*entry.images[:1], *entry.right[:1]))
            yield Dropped(entry.key, str(refused), where, places, self._source)
            return
        yield Record(
            key=entry.key,
            image=image,
            captions=entry.captions,
            source=self._source,
            fields=entry.fields,
            where=where,
            image2=image2,
            columns=entry.columns,
        )


def check_file(path: Path) -> None:
    """Raises `UserError` if there is no readable file, or it is a spreadsheet or in UTF-16, as some export it."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the file in it.")
    if not path.is_file():
        raise UserError(f"No file at {path}: check the path.")
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change its permissions.") from None
    if begins == ZIP:
        raise UserError(f"{path} is a spreadsheet or an archive, and no text: save it as CSV, or unpack it.")
    if begins[:2] in UTF_16:
        raise UserError(f"{path} is in UTF-16: convert it to UTF-8, as `iconv -f UTF-16 -t UTF-8` does.")


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines without byte-order marks, cut at the longest plausible length."""
    while line := file.readline(MAX_TEXT_BYTES):
        yield line.removeprefix(codecs.BOM_UTF8)  # not only of the first: `cat` joins files that begin with one


def one_file(paths: Sequence[Path], source: str) -> Path:
    """The only path; raises `UserError` if there are more, whose rows would have the same numbers."""
    if len(paths) != 1:
        raise UserError(f"The source {source} takes one file, whose rows name the images: shard each by itself.")
    return paths[0]


def mean_size(records: Iterable[Record | Dropped]) -> int:
    """Mean bytes of an image, estimated from the first records."""
    sizes = [len(record.image) + len(record.image2) for record in islice(records, SAMPLE) if isinstance(record, Record)]
    return max(1, sum(sizes) // max(1, len(sizes)))


def located_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """As `lines`, each with the offset at which it begins."""
    offset = file.tell()
    for line in lines(file):
        yield offset, line
        offset = file.tell()


def json_object(line: bytes) -> dict[str, Any]:
    """The object in a line; raises `ValueError` if it is not a JSON object in UTF-8."""
    content = parse_json(line)
    if not isinstance(content, dict):
        raise ValueError("the line is not a JSON object")
    return content


def text(value: object) -> str:
    """The value, if it is a string; raises `TypeError`."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text should be")
    return value


def whole(value: object) -> int:
    """The value, if it is a whole number; raises `TypeError`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{type(value).__name__} where a whole number should be")
    return value
