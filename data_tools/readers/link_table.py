"""Tables with one link per row: parquet, CSV, TSV and JSON lines, with the column names that everybody uses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.shards.forms import is_parquet
from mvlm.errors import UserError

from .annotated import check_file, lines
from .row_files import LINK_COLUMNS, Row, first_names, json_row, rows_of, table_header, undecided

CAPTION_COLUMNS = ("caption", "captions", "text", "title", "alt_text", "alt")
KEY_COLUMNS = ("uid",)
"""Looked for in this order whatever their case: LAION's and COYO's URL and TEXT, DataComp's url, text and uid."""

SEPARATED = (".csv", ".tsv")
ENDINGS = (".parquet", *SEPARATED, ".jsonl", ".json")
"""In upper or lower case."""

BATCH = 1024
DAMAGED = "table is cut short or damaged from here on"


class Damaged(Exception):
    """The rest of a table cannot be read."""


def table_files(paths: Sequence[Path]) -> list[Path]:
    """The tables at these paths, in order; a folder stands for those inside it.

    Raises:
        UserError: there is none, one is of an unknown kind, or two have the same name, with which their keys begin.
    """
    files = [file for path in paths for file in (_inside(path) if path.is_dir() else [path])]
    for file in files:
        check_file(file)
        if file.suffix.lower() not in ENDINGS:
            raise UserError(f"{file} is not a table of links: give files that end in {', '.join(ENDINGS)}.")
    if len({file.stem for file in files}) < len(files):
        raise UserError(
            "Two of the tables have the same name, and so the same keys: shard them separately or rename one."
        )
    return files


def _inside(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not files:
        raise UserError(f"{folder} holds no table: give a folder of files that end in {', '.join(ENDINGS)}.")
    return files


class LinkTable:
    """One table, and which of its columns hold the link, the caption and the key ("" if none does).

    Raises:
        UserError: it cannot be read, or its columns do not tell which is which.
    """

    def __init__(self, path: Path, link: str = "", caption: str = "", key: str = "") -> None:
        self.path = path
        self.columns = self._read_columns()
        self.link = self._column(link, LINK_COLUMNS, "--image-column")
        self.caption = self._column(caption, CAPTION_COLUMNS, "--caption-column")
        self.key = self._column(key, KEY_COLUMNS, "--key-column", needed=bool(key))

    @cached_property
    def _length(self) -> int:
        """How many rows it has; except in parquet, they are counted one by one."""
        if is_parquet(self.path):
            return int(pq.read_metadata(self.path).num_rows)
        return sum(1 for _ in self._all())

    def __len__(self) -> int:
        return self._length

    def rows(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Row | None]]:
        """Number and content of each row from `start` to before `end`, None for a malformed one; raises `Damaged`."""
        if is_parquet(self.path):
            yield from self._parquet(start, end)
        else:
            yield from itertools.islice(enumerate(self._all()), start, end)

    def _read_columns(self) -> list[str]:
        """In parquet, only those of numbers, texts and lists of texts: an embedding is neither read nor kept."""
        if is_parquet(self.path):
            try:
                schema = pq.read_schema(self.path)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{self.path} is not a readable parquet file ({error}): copy it again.") from None
            return [field.name for field in schema if _is_plain(field.type)]
        if self.path.suffix.lower() in SEPARATED:
            return table_header(self.path)[0]
        return first_names(self.path)

    def _column(self, given: str, known: Sequence[str], option: str, needed: bool = True) -> str:
        if given:
            found = given if given in self.columns else ""
        else:
            by_lower = {name.strip().lower(): name for name in reversed(self.columns)}
            found = next((by_lower[name] for name in known if name in by_lower), "")
        if not found and needed:
            raise undecided(self.path, self.columns, option, links=True)
        return found

    def _parquet(self, start: int, end: int | None) -> Iterator[tuple[int, Row]]:
        number = 0
        try:
            with pq.ParquetFile(self.path, memory_map=True) as parquet:
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    if number + rows <= start or (end is not None and number >= end):
                        number += rows
                        continue
                    for batch in parquet.iter_batches(BATCH, [group], self.columns):
                        low = max(start - number, 0)
                        high = len(batch) if end is None else min(end - number, len(batch))
                        if low < high:
                            yield from enumerate(batch.slice(low, high - low).to_pylist(), number + low)
                        number += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(str(error)[:200]) from None

    def _all(self) -> Iterator[Row | None]:
        with self.path.open("rb") as file:
            if self.path.suffix.lower() in SEPARATED:
                yield from rows_of(file, self.path, *table_header(self.path))
            else:
                yield from (json_row(line) for line in lines(file) if line.strip())


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    return not (pa.types.is_nested(kind) or pa.types.is_large_binary(kind))
