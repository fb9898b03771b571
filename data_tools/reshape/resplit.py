"""A finished corpus divided among splits, by a hash of one of its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zlib_ng import zlib_ng

from mvlm.data.shards.cache import Cache
from mvlm.data.shards.in_place import resolved
from mvlm.data.shards.integrity import check_hash, check_length, check_lengths
from mvlm.data.shards.location import open_location
from mvlm.data.shards.schema import IMAGE_COLUMNS, SCHEMAS, read_manifest
from mvlm.data.shards.tables import columns_of, named_in_conditions
from mvlm.errors import UserError

from ..corpora import kept_rows, shard_rows
from ..meta import with_meta
from ..record import Record
from ..split import MISSING, NoSplit, Split
from ..store.destination import staged
from ..writer import CorpusWriter

Columns = dict[str, Any]


def resplit(
    folder: Path, out: Path | str, split: Split, shard_bytes: int, on_row: Callable[[int], None]
) -> dict[str, int]:
    """Write each row of the corpus in `folder` to one of the corpora `out`/<split>; return their numbers of rows.

    If `split.field` is the key, the rows go where `shard --split` would have put them. One batch of rows is held.

    Raises:
        UserError: there is no such column, a row names none of the splits, a split is left empty, the corpus is
            damaged, or `out` cannot be written.
    """
    task, columns = read_manifest(folder).task, _columns(folder)
    if split.field not in columns:
        raise UserError(f"{folder} has no column {split.field!r} to split by: give one of {', '.join(columns)}.")

    def rows() -> Iterator[tuple[Columns, str]]:
        for row in checked_rows(folder):
            on_row(len(row["image"]))
            try:
                name = split.allot(Record(row["key"], b"", (), row["source"], row["meta"] | row))
            except NoSplit as none:
                if none.reason == MISSING:
                    raise UserError(
                        f"{folder} has the row {row['key']}, which has no {split.field!r} to split by: give a column "
                        "that every row has."
                    ) from None
                raise UserError(f"{folder} has the row {row['key']}, whose {none}: name all splits.") from None
            yield row, name

    with staged(out) as partial:
        counts = write_rows(rows(), partial, list(split.shares), task, shard_bytes)
        if empty := [name for name, rows in counts.items() if not rows]:
            raise UserError(f"{out} was not made, because no row fell into the split {empty[0]!r}: {split.remedy}.")
    return counts


def _columns(folder: Path) -> list[str]:
    """The columns of the shards and of their tables, without the images."""
    location = open_location(folder, Cache())
    of_tables = (columns_of(location, number, ())[1] for number in range(len(location.manifest.shards)))
    names = dict.fromkeys(chain(SCHEMAS[location.manifest.task].names, *of_tables))
    return [name for name in names if name not in IMAGE_COLUMNS]


def checked_rows(folder: Path) -> Iterator[Columns]:
    """The rows of a corpus by column, with what its tables say about them as `meta`, but none that was taken down.

    Raises:
        UserError: a shard or one of its tables is damaged or another's, or an image does not match its checksum.
    """
    number, kept, manifest = 0, kept_rows(folder), read_manifest(folder)
    check_lengths(folder, manifest.shards)
    for shard in manifest.shards:
        tables = [table for name in named_in_conditions(shard) if (table := shard.table(name))]
        for table in tables:
            check_length(folder, table)
            check_hash(folder, table)
        rows = shard_rows(folder / shard.file, manifest.task)
        for row in with_meta(rows, [folder / table.file for table in tables], manifest.task):
            present = [(row[name], row[crc32]) for name, (*_, crc32) in IMAGE_COLUMNS.items() if name in row]
            if any(zlib_ng.crc32(resolved(image)) != crc32 for image, crc32 in present):
                raise UserError(f"{folder} row {number} ({row['key']}) has changed since it was written: run `verify`.")
            if kept is None or number in kept:
                yield row
            number += 1


def write_rows(
    rows: Iterable[tuple[Columns, str]], folder: Path, names: Sequence[str], task: str, shard_bytes: int
) -> dict[str, int]:
    """Write each row to the corpus of its name in `folder`; return the number of rows of each."""
    writers = {name: CorpusWriter(folder / name, shard_bytes, task) for name in names}
    for row, name in rows:
        writers[name].add(SimpleNamespace(**row))
    for writer in writers.values():
        if writer.rows:
            writer.close()
    return {name: writer.rows for name, writer in writers.items()}
