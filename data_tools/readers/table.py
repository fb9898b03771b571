"""Tables of pictures and captions: files with one row per image or per caption, whatever their format."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mvlm.errors import UserError

from .annotated import SAMPLE, Annotated, Annotation, At, Unfit, check_file, one_file, text
from .captions import captions_of, unfolded
from .images import beginnings, spellings
from .members import is_inside
from .row_files import Row, RowFile, malformed, row_file, undecided

IMAGE_COLUMNS = (
    *("image", "image_path", "filepath", "file_path", "path"),
    *("filename", "file_name", "image_name", "file", "img"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description", "sentence", "comment", "alt_text")
"""Names looked for, in this order, if no option names the column."""

DRIVE = re.compile(r"\s*[A-Za-z]:[\\/]")


def table(
    paths: list[Path],
    images: list[str] | None = None,
    image_column: str = "",
    caption_column: str = "",
    key_column: str = "",
) -> Annotated:
    """one CSV or TSV file with a header, JSON lines, or a JSON list of objects (ALBEF's, BLIP's and LAVIS's
    annotations, Hugging Face's metadata.jsonl), one row per image; consecutive rows of one image are its captions;
    --images: the folders that its paths start from (default: the table's own, or the one in it that holds the first
    images); --image-column, --caption-column (default: found by name); --key-column (default: the image's path)"""
    path = one_file(paths, "table")
    check_file(path)
    file = row_file(path)
    image = _column(path, file.columns, image_column, IMAGE_COLUMNS, "--image-column")
    caption = _column(path, file.columns, caption_column, CAPTION_COLUMNS, "--caption-column")
    key = _column(path, file.columns, key_column, (), "--key-column") if key_column else image
    folders = images or _folders(path, file, image)
    roots = beginnings(folders)

    def of_one_image(located: tuple[int, Row | None]) -> object:
        row = located[1]
        return object() if row is None else (row.get(key), row.get(image))

    def items(opened: BinaryIO) -> Iterator[Any]:
        for _, of_image in itertools.groupby(file.rows(opened), key=of_one_image):
            located = list(of_image)
            rows = [row for _, row in located]
            yield (located[0][0], rows) if file.seekable else rows

    def entry(rows: list[Any], at: At) -> Annotation:
        first = rows[0]
        if first is None:
            raise Unfit(malformed(path))
        if not first.get(image):
            raise Unfit("no image path")
        place = text(first[image])
        place = next((place.removeprefix(root) for root in roots if place.startswith(root)), place)
        if DRIVE.match(place):
            raise Unfit("image path has a drive of Windows: make it relative to the folder of images")
        named = place if key == image else first.get(key)
        name = place if named in (None, "") else named
        captions = [one for row in rows for one in captions_of(unfolded(row.get(caption, [])))]
        fields = {column: value for column, value in first.items() if column not in (image, caption)}
        return Annotation(str(name) if isinstance(name, int) else text(name), _places(place), captions, fields)

    return Annotated([path], folders, items, entry, path.resolve().stem, file.seekable)


def _places(name: str) -> list[str]:
    """The paths that a field may mean: as it stands, without blanks around it, and with Windows' slashes turned."""
    return list(dict.fromkeys(one for path in (name, name.strip()) for one in (path, path.replace("\\", "/"))))


def _folders(path: Path, file: RowFile, image: str) -> list[str]:
    """The table's folder or, if none of its first images is there, the one directly below that holds some; not a link,
    which may lead anywhere.

    Raises:
        UserError: all of these images are elsewhere, by absolute paths.
    """
    with path.open("rb") as opened:
        rows = [row for _, row in itertools.islice(file.rows(opened), SAMPLE) if row]
    names = [name for row in rows if isinstance(name := row.get(image), str) and name]
    roots = tuple(beginnings([path.parent]))
    if names and all(name.startswith("/") and not os.path.realpath(name).startswith(roots) for name in names):
        where = os.path.commonpath([os.path.dirname(name) for name in names])
        raise UserError(f"{path} has absolute paths of images, such as {names[0]}: give --images, such as {where}.")
    below = sorted(folder for folder in path.parent.iterdir() if folder.is_dir() and not folder.is_symlink())
    for folder in (path.parent, *below):
        inside = (place for name in names for place in _places(name) if is_inside(place))
        if any((folder / spelled).is_file() for place in inside for spelled in spellings(place)):
            return [str(folder)]
    return [str(path.parent)]


def _column(path: Path, columns: Sequence[str], given: str, known: Sequence[str], option: str) -> str:
    if given:
        found = given if given in columns else ""
    else:
        by_lower = {name.strip().lower(): name for name in columns}
        found = next((by_lower[name] for name in known if name in by_lower), "")
    if not found:
        raise undecided(path, columns, option)
    return found
