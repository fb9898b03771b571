"""Where in an Arrow or parquet file the images of its rows lie, for shards that leave them there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from mvlm.data.shards.mapped import MappedFile
from mvlm.errors import UserError

Places = Callable[[bytes], tuple[Path, int] | None]
"""Of each image, in the order of the rows, its file and where it begins in it."""


def placed(file: Path, image_column: str, first_group: int) -> Places:
    """Find the images of a file from a row group on.

    They lie in it as they are, one after the other, so that each is found where the one before it ends: this holds for
    Arrow's two formats and for parquet's plain and dictionary pages alike, as long as nothing is compressed.

    Raises:
        UserError: the images are compressed; or, of `Places`, one is not in the file.
    """
    at = _first(file, image_column, first_group) if file.suffix == ".parquet" else 0
    content, last = MappedFile(file), b""

    def place(image: bytes) -> tuple[Path, int]:
        nonlocal at, last
        if image != last or not image:
            found = content.find(image, at)
            found = content.find(image, 0) if found < 0 else found  # a repeated value of a dictionary page
            if found < 0:
                raise UserError(
                    f"{file} does not hold its images as they are, so that they cannot stay in it (they may be "
                    "compressed, or files of their own): leave out --in-place."
                )
            at, last = found, image
        return file, at

    return place


def _first(file: Path, image_column: str, group: int) -> int:
    """Where the images of a row group begin."""
    about = pq.read_metadata(file, memory_map=True).row_group(group)
    for number in range(about.num_columns):
        column = about.column(number)
        if column.path_in_schema == f"{image_column}.bytes":
            if column.compression != "UNCOMPRESSED":
                raise UserError(
                    f"{file} is compressed by {column.compression}, so that its images cannot stay in it: leave out "
                    "--in-place."
                )
            return int(column.dictionary_page_offset or column.data_page_offset)
    return 0
