"""Where in an Arrow or parquet file the images of its rows lie, for shards that leave them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from mvlm.data.shards.forms import IN_PLACE, is_parquet
from mvlm.data.shards.in_place import PlaceInFile
from mvlm.data.shards.mapped import MappedFile
from mvlm.errors import UserError

from .parquet_pages import Page, UnknownPage, pages

Places = Callable[[bytes], PlaceInFile]
"""Where each image lies, asked for in the order of the rows."""


def placed(file: Path, image_column: str, first_group: int) -> Places:
    """Find the images of a file from a row group on.

    Raises:
        UserError: the images are compressed by anything but snappy; or, from the result, an image is not in the file.
    """
    return _in_parquet(file, image_column, first_group) if is_parquet(file) else _in_arrow(file)


def _in_arrow(file: Path) -> Places:
    """Both of Arrow's formats store images as they are; each is searched for from the end of the one before."""
    content, at = MappedFile(file), 0

    def place(image: bytes) -> PlaceInFile:
        nonlocal at
        begin = content.find(image, at)
        if begin < 0:
            raise _not_in(file)
        at = begin + len(image)
        return PlaceInFile(file, ((begin, len(image)),))

    return place


def _in_parquet(file: Path, image_column: str, first_group: int) -> Places:
    """Images lie on pages, one after the other; a dictionary page holds once what many rows of its group share."""
    column = _stored_column(file, image_column)
    following = pages(file, column, first_group)
    page: Page | None = None
    known: dict[bytes, PlaceInFile] = {}

    def place(image: bytes) -> PlaceInFile:
        nonlocal page
        if image in known:
            return known[image]
        found = page.next(image) if page else None
        while page is None or found is None:
            page = _following(following, file)
            if page.is_first:
                known.clear()
            found = page.next(image)
        if page.is_first:
            known[image] = found
        return found

    return place


def _following(following: Iterator[Page], file: Path) -> Page:
    try:
        page = next(following, None)
    except (UnknownPage, IndexError, KeyError) as error:
        raise UserError(f"{file} has a page of an unknown kind ({error}): leave out --in-place.") from None
    if page is None:
        raise _not_in(file)
    return page


def _stored_column(file: Path, image_column: str) -> str:
    about = pq.read_metadata(file, memory_map=True)
    if about.num_row_groups:
        group = about.row_group(0)
        for column in (group.column(number) for number in range(group.num_columns)):
            if column.path_in_schema in (f"{image_column}.bytes", image_column):
                if column.compression not in IN_PLACE:
                    raise UserError(
                        f"{file} is compressed by {column.compression}, so that its images cannot stay in it: leave "
                        "out --in-place."
                    )
                return str(column.path_in_schema)
    return image_column


def _not_in(file: Path) -> UserError:
    return UserError(
        f"{file} does not hold its images as they are, so that they cannot stay in it (they may be compressed, or "
        "files of their own): leave out --in-place."
    )
