"""The tables beside a shard: what is known about its rows but not read in training, as one Parquet file per table.

`000000.meta.parquet` holds what the source said about each row of `000000.arrow`, in its order, together with `key`,
`source`, `width`, `height` and the number of captions, `captions`. Other tables, such as `000000.scores.parquet`, hold
what was computed later. Shards made before there were tables have none: for them these columns are read from the shard
itself. A column that a shard lacks is null for its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mvlm.data.shards.files import Shard, table_file
from mvlm.data.shards.location import ShardLocation
from mvlm.data.shards.schema import SCHEMAS
from mvlm.errors import UserError
from mvlm.runtime.storage import publish

META = "meta"
EMBEDDINGS = "embeddings"
"""A table too large to be read for a condition, which cannot name its columns."""

ROW_GROUP = 1 << 16
"""Rows of a table that are read together."""

PARQUETS_OWN = {pa.bool_(), pa.int64(), pa.float64(), pa.string()}
"""Types that Parquet reads back as they were without a stored Arrow schema."""


def own_columns(task: str) -> list[str]:
    """The columns that every shard of a task has, with or without tables."""
    return ["key", "source", "width", "height", *(["captions"] if "captions" in SCHEMAS[task].names else [])]


def table_bytes(table: pa.Table) -> bytes:
    """A table as a file, with checksums by which damage is noticed when it is read."""
    file = pa.BufferOutputStream()
    repeated = [name for name in table.schema.names if name != "key"]
    pq.write_table(
        table,
        file,
        row_group_size=ROW_GROUP,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=repeated,  # keys are unique, and most differ from the one before only at their ends
        column_encoding={"key": "DELTA_BYTE_ARRAY"} if "key" in table.schema.names else None,
        write_statistics=False,  # none of our readers uses them
        store_schema=bool(table.schema.metadata) or not PARQUETS_OWN.issuperset(table.schema.types),
    )
    return file.getvalue().to_pybytes()


def add_table(folder: Path, shard: Shard, name: str, table: pa.Table) -> Shard:
    """Write a table beside a shard in `folder`; return the shard with it."""
    path, content = folder / table_file(shard.file, name), table_bytes(table)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    publish(partial, path)
    others = tuple(each for each in shard.tables if each[0] != name)
    return replace(shard, tables=(*others, (name, len(content), hashlib.sha256(content).hexdigest())))


def _own_columns_of(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """The own columns of a record batch of a shard."""
    columns = {name: batch[name] for name in ("key", "source", "width", "height")}
    if "captions" in batch.schema.names:
        columns["captions"] = pc.list_value_length(batch["captions"])
    return columns


def named_in_conditions(shard: Shard) -> list[str]:
    """The tables whose columns conditions may name, the source's first: later ones replace columns of the same name."""
    return sorted((name for name, *_ in shard.tables if name != EMBEDDINGS), key=lambda name: name != META)


def columns_of(location: ShardLocation, number: int, wanted: Collection[str] | None) -> tuple[pa.Table, list[str]]:
    """The wanted columns of a shard's tables, and the names of all columns they have.

    Args:
        wanted: columns, of which those that the shard lacks are left out; None = all.

    Raises:
        UserError: a table is missing or damaged; names it.
    """
    shard, names = location.manifest.shards[number], list[str]()
    found: dict[str, pa.ChunkedArray] = {}
    for name in named_in_conditions(shard):
        table = shard.table(name)
        assert table
        columns, has = read_columns(location, table, wanted)
        found |= columns
        names += has
    missing = [name for name in own_columns(location.manifest.task) if name not in names]
    if wanted is None or set(missing) & set(wanted):
        own = _of_shard(location, number, shard)
        found |= {name: own[name] for name in missing if wanted is None or name in wanted}
    table = pa.table(found) if found else pa.table({"": pa.nulls(shard.rows)})
    return table, list(dict.fromkeys(names + missing))


def read_columns(
    location: ShardLocation, table: Shard, wanted: Collection[str] | None
) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """The wanted columns of a table, and the names of all; raises like `columns_of`."""
    name = f"{location.folder}/{table.file}"
    try:
        file = location.map_table(table)
        with pq.ParquetFile(pa.BufferReader(pa.py_buffer(file.data)), page_checksum_verification=True) as parquet:
            has = parquet.schema_arrow.names
            columns = [column for column in has if wanted is None or column in wanted]
            if parquet.metadata.num_rows != table.rows:
                raise UserError(
                    f"{name} has {parquet.metadata.num_rows} rows and its shard {table.rows}: make it again."
                )
            read = parquet.read(columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read ({error}): copy it again, or shard the corpus again.") from None
    return dict(zip(read.schema.names, read.columns, strict=True)), has


def _of_shard(location: ShardLocation, number: int, shard: Shard) -> dict[str, pa.ChunkedArray]:
    """The own columns, read from the shard itself without touching the pages of an image."""
    name = location.name(number)
    try:
        file = location.map(number, shard)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(file.data)))
        parts = [_own_columns_of(reader.get_batch(at)) for at in range(reader.num_record_batches)]
        types = {name: array.type for name, array in parts[0].items()} if parts else {}
        return {name: pa.chunked_array([part[name] for part in parts], types[name]) for name in types}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{name} cannot be read ({error}): copy or shard it again.") from None


def unknown_column(name: str, folder: str | Path, known: Iterable[str]) -> UserError:
    listed: Sequence[str] = sorted(set(known))
    return UserError(f"No shard of {folder} has a column {name!r}: its columns are {', '.join(listed)}.")
