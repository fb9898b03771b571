"""Tables of pictures and captions: CSV and TSV files with a header, one row an image or one row a caption."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mvlm.errors import UserError

from .annotated import Annotated, Annotation, At, Unfit, check_file, lines, one_file
from .members import MAX_TEXT_BYTES

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "path", "filename", "file_name", "file", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description", "sentence", "comment", "alt_text")
"""Names looked for, in this order, where no option names the column."""

HEADER_BYTES = 1 << 20

_Located = tuple[int, dict[str, Any]]


def table(
    paths: list[Path],
    images: list[str] | None = None,
    image_column: str = "",
    caption_column: str = "",
    key_column: str = "",
) -> Annotated:
    """one CSV or TSV file with a header, one row an image; consecutive rows of one image are its captions; --images:
    the folders that its paths begin in (default: the table's own); --image-column, --caption-column (default: found by
    name); --key-column (default: the image's path)"""
    path = one_file(paths, "table")
    check_file(path)
    header, delimiter = table_header(path)
    image = _column(path, header, image_column, IMAGE_COLUMNS, "--image-column")
    caption = _column(path, header, caption_column, CAPTION_COLUMNS, "--caption-column")
    key = _column(path, header, key_column, (), "--key-column") if key_column else image

    def items(file: BinaryIO) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        rows = located_rows(file, path, header, delimiter)
        for _, of_image in itertools.groupby(rows, key=lambda row: (row[1][key], row[1][image])):
            located = list(of_image)
            yield located[0][0], [row for _, row in located]

    def entry(rows: list[dict[str, Any]], at: At) -> Annotation:
        first = rows[0]
        if not first[image]:
            raise Unfit("no image path")
        fields = {name: value for name, value in first.items() if name not in (image, caption)}
        return Annotation(first[key] or first[image], [first[image]], [row[caption] for row in rows], fields)

    return Annotated([path], images or [str(path.resolve().parent)], items, entry, path.resolve().stem, True)


def table_header(path: Path) -> tuple[list[str], str]:
    """The names of the columns, and what separates them: a tab where there is one, else what stands there most."""
    with path.open("rb") as file:
        line = file.readline(HEADER_BYTES).decode("utf-8-sig", "replace")
    delimiter = "\t" if "\t" in line else max(",;|", key=line.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"{path} begins with {line.strip()[:80]!r}: its first line must name its columns, of which it needs one "
            "with the images' paths and one with their captions."
        )
    return names, delimiter


def _column(path: Path, header: Sequence[str], given: str, known: Sequence[str], option: str) -> str:
    by_lower = {name.strip().lower(): name for name in header}
    found = (given if given in header else "") if given else next((by_lower[n] for n in known if n in by_lower), "")
    if not found:
        raise UserError(f"{path} has the columns {', '.join(header)}: say which with {option}.")
    return found


def rows_of(file: BinaryIO, path: Path, header: Sequence[str], delimiter: str) -> Iterator[dict[str, Any]]:
    """The rows of a table from its start, as `located_rows`."""
    return (row for _, row in located_rows(file, path, header, delimiter))


def located_rows(file: BinaryIO, path: Path, header: Sequence[str], delimiter: str) -> Iterator[_Located]:
    """The rows behind the header, by column; what a short row lacks is empty, and what a long one has more is left out.

    Each comes with the offset at which it begins. The file stands at its start, or at the start of a row.

    Raises:
        UserError: a field is longer than any caption.
    """
    csv.field_size_limit(MAX_TEXT_BYTES)
    texts = (line.decode("utf-8", "surrogateescape") for line in lines(file))
    reader = csv.reader(texts, delimiter=delimiter)
    try:
        if file.tell() == 0:
            next(reader, None)
        offset = file.tell()
        for values in reader:
            if values:
                yield offset, dict(itertools.zip_longest(header, values[: len(header)], fillvalue=""))
            offset = file.tell()
    except csv.Error as error:
        raise UserError(f"{path} is no table from line {reader.line_num} on ({error}): write it anew.") from None
