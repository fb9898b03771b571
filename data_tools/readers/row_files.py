"""Files of rows whose columns have names: CSV, TSV, JSON lines, and one JSON list of objects."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mvlm.errors import UserError

from .annotated import MALFORMED, json_object, lines, located_lines
from .json_stream import json_items
from .members import MAX_TEXT_BYTES

JSON_LINES = (".jsonl", ".ndjson")
NAMED = (*JSON_LINES, ".json", ".parquet", ".arrow")
"""Endings of files that cannot lack the names of their columns."""

HEADER_BYTES = 1 << 20

DELIMITER_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""The line before the header that tells Excel what separates the columns."""

LINK_COLUMNS = ("url", "image_url", "img_url", "link")
"""Looked for in this order, whatever their case, if images are links."""

Row = dict[str, Any]
LocatedRows = Iterator[tuple[int, Row | None]]
"""Each row by column, None for a malformed one, with the offset at which it begins."""


@dataclass(frozen=True)
class RowFile:
    """A file and what its rows are made of.

    Attributes:
        columns: their names; in JSON, those of the first row, which others may lack.
        rows: reads a file that is at its start or, if seekable, at the start of a row.
        seekable: whether the offsets are real; those of a JSON list are all 0.
    """

    columns: Sequence[str]
    rows: Callable[[BinaryIO], LocatedRows]
    seekable: bool = True


def undecided(path: Path, columns: Sequence[str], option: str, links: bool = False) -> UserError:
    """The error that the names of a table's columns do not tell which is meant.

    Args:
        links: whether a column of links is what was looked for.
    """
    said = f"{path} has the columns {', '.join(columns)}"
    if option == "--image-column" and not links and {name.strip().lower() for name in columns} & set(LINK_COLUMNS):
        return UserError(f"{said}, and links in place of images: `mvlm-data shard urls` downloads them.")
    if path.suffix.lower() in NAMED:
        return UserError(f"{said}: say which with {option}.")
    return UserError(
        f"{said} (its first line): say which with {option}, or, if that line is data, put one above it that names the "
        "columns."
    )


def malformed(path: Path) -> str:
    """The reason for which a row is dropped that a file of this ending gives as None."""
    return MALFORMED if path.suffix.lower() in NAMED else "row has more fields than the header"


def row_file(path: Path) -> RowFile:
    """The reader of a file by its ending; raises `UserError` if the file does not begin with names of columns."""
    if path.suffix.lower() in JSON_LINES:
        return RowFile(first_names(path), _json_lines)
    if path.suffix.lower() == ".json":
        return _json(path)
    header, delimiter = table_header(path)
    return RowFile(header, lambda file: located_rows(file, path, header, delimiter))


def _json(path: Path) -> RowFile:
    with path.open("rb") as file:
        if next(lines(file), b"").lstrip()[:1] != b"[":
            return RowFile(first_names(path), _json_lines)
        file.seek(0)
        first = next(json_items(file, "item"), None)
    if not isinstance(first, dict):
        raise UserError(f"{path} holds no list of objects: give one with an object for each image or caption.")
    return RowFile(list(first), _json_list, seekable=False)


def first_names(path: Path) -> list[str]:
    """The names in the object of the first line; raises `UserError` if there is none."""
    with path.open("rb") as file:
        try:
            return list(json_object(next(lines(file), b"")))
        except ValueError as error:
            raise UserError(f"{path} does not begin with a JSON object ({error}): give one per line.") from None


def _json_lines(file: BinaryIO) -> LocatedRows:
    return ((offset, json_row(line)) for offset, line in located_lines(file) if line.strip())


def _json_list(file: BinaryIO) -> LocatedRows:
    return ((0, item if isinstance(item, dict) else None) for item in json_items(file, "item"))


def json_row(line: bytes) -> Row | None:
    """What a line of JSON lines holds; None if that is not an object."""
    try:
        return json_object(line)
    except (ValueError, RecursionError):
        return None


def table_header(path: Path) -> tuple[list[str], str]:
    """The names of the columns, and what separates them: what a line before them says, or a tab if there is one, or the
    most frequent candidate."""
    with path.open("rb") as file:
        line = file.readline(HEADER_BYTES).decode("utf-8-sig", "replace")
        if said := DELIMITER_LINE.fullmatch(line):
            line = file.readline(HEADER_BYTES).decode("utf-8", "replace")
    delimiter = said[1] if said else "\t" if "\t" in line else max(",;|", key=line.count)
    names: list[str] = next(csv.reader(line.splitlines()[:1], delimiter=delimiter), [])
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{path} has two columns {twice[0]!r}: rename one of them.")
    if len(names) < 2:
        raise UserError(
            f"{path} begins with {line.strip()[:80]!r}: its first line must name its columns, of which it needs one "
            "with the images' paths and one with their captions."
        )
    return names, delimiter


def rows_of(file: BinaryIO, path: Path, header: Sequence[str], delimiter: str) -> Iterator[Row | None]:
    """The rows of a table from its start, without their offsets; as `located_rows`."""
    return (row for _, row in located_rows(file, path, header, delimiter))


def located_rows(file: BinaryIO, path: Path, header: Sequence[str], delimiter: str) -> LocatedRows:
    """The rows after the header, by column; what a short row lacks is empty.

    A row with more fields than the header is malformed: one of its texts has an unquoted delimiter. The file is at its
    start, or at the start of a row.

    Raises:
        UserError: a field is longer than any caption, or a quote swallows the lines after its own.
    """
    csv.field_size_limit(MAX_TEXT_BYTES)
    of_row: list[str] = []
    reader = csv.reader(_kept(file, of_row), delimiter=delimiter)
    try:
        if file.tell() == 0:
            next(reader, None)
            if of_row and DELIMITER_LINE.fullmatch(of_row[0]):
                next(reader, None)
        offset = file.tell()
        of_row.clear()
        for values in reader:
            if len(of_row) > 1:
                _check_quotes(of_row, delimiter)
            of_row.clear()
            if any(values[len(header) :]):
                yield offset, None
            elif values:
                yield offset, dict(itertools.zip_longest(header, values[: len(header)], fillvalue=""))
            offset = file.tell()
    except csv.Error as error:
        line = reader.line_num - len(of_row) + 1
        why = "its lines end as on old Macs" if "new-line" in str(error) else error
        raise UserError(f"{path} is not a table from line {line} on ({why}): save it again.") from None


def _kept(file: BinaryIO, texts: list[str]) -> Iterator[str]:
    """The lines of a file, each added to `texts` as it is asked for."""
    for line in lines(file):
        texts.append(line.decode("utf-8", "surrogateescape"))
        yield texts[-1]


def _check_quotes(texts: list[str], delimiter: str) -> None:
    """Raises `csv.Error` if a row spans several lines only because csv forgives a quote that never ends."""
    try:
        list(csv.reader(texts, delimiter=delimiter, strict=True))
    except csv.Error:
        raise csv.Error("a text that begins with a quote does not end with one") from None
