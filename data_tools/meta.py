"""The table of metadata beside each shard: what the source said about its rows, in columns of one type each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvlm.data.shards.files import Shard
from mvlm.data.shards.tables import META, add_table, own_columns
from mvlm.errors import UserError

from .record import as_text

MOST_COLUMNS = 256
"""Columns of a shard at most; a source with more has free-form keys, of which the first ones met are kept."""

CAPTIONS = ("caption", "captions")
"""Fields that are in the shard itself."""

INT64 = range(-(1 << 63), 1 << 63)


class MetaColumns:
    """The metadata of a shard's rows, collected batch by batch.

    A column whose values are all integers, all numbers or all booleans keeps that type. Any other becomes text, with
    numbers, lists and objects as in JSON. Bytes are not kept.
    """

    def __init__(self, task: str) -> None:
        self._own = own_columns(task)
        self._rows = 0
        self._columns: dict[str, list[pa.Array]] = {}

    def add(self, rows: Sequence[Any]) -> None:
        """Take rows, which have the columns of their task and perhaps `meta`, a mapping, as attributes."""
        batch = {name: [getattr(row, name) for row in rows] for name in self._own}
        if "captions" in batch:
            batch["captions"] = [len(captions) for captions in batch["captions"]]
        found = [getattr(row, "meta", {}) for row in rows]
        names = dict.fromkeys(name for each in found for name, value in each.items() if not isinstance(value, bytes))
        for name in names:
            known = name in self._columns or len(self._columns) + len(batch) < MOST_COLUMNS
            if name not in batch and name not in CAPTIONS and known:
                batch[name] = [each.get(name) for each in found]
        for name, values in batch.items():
            parts = self._columns.setdefault(name, [pa.nulls(self._rows)] if self._rows else [])
            parts.append(column(values))
        self._rows += len(rows)
        for name in self._columns.keys() - batch.keys():
            self._columns[name].append(pa.nulls(len(rows)))

    def write(self, folder: Path, shard: Shard) -> Shard:
        """Write the table beside the shard, and start a new one; return the shard with its table."""
        table = pa.table({name: joined(parts) for name, parts in self._columns.items()})
        self._rows, self._columns = 0, {}
        return add_table(folder, shard, META, table)


def column(values: Sequence[Any]) -> pa.Array:
    """An array of the type that the values have in common; bytes become null."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or (kinds == {int} and all(value is None or value in INT64 for value in values)):
        return pa.array(values)
    if kinds <= {int, float} and float in kinds:
        with suppress(OverflowError):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
    if kinds == {str}:
        with suppress(UnicodeEncodeError):
            return pa.array(values, pa.string())
    return pa.array(map(_text, values), pa.string())


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, bytes):
        return None
    return as_text(value, ensure_ascii=False).encode("utf-8", "replace").decode()  # a lone surrogate is not UTF-8


def joined(parts: Iterable[pa.Array]) -> pa.ChunkedArray:
    """The arrays end to end, in a type that holds them all."""
    arrays = list(parts)
    types = {part.type for part in arrays if not pa.types.is_null(part.type)}
    if len(types) > 1 and not types <= {pa.int64(), pa.float64()}:
        # As `column` does within a batch: Arrow would write 1.0 as 1.
        return pa.chunked_array([pa.array(map(_text, part.to_pylist()), pa.string()) for part in arrays], pa.string())
    type_ = pa.float64() if len(types) > 1 else types.pop() if types else pa.null()
    return pa.chunked_array([part.cast(type_, safe=False) for part in arrays], type_)


def with_meta(rows: Iterable[dict[str, Any]], tables: Sequence[Path], task: str) -> Iterator[dict[str, Any]]:
    """The rows of a shard, each with what its tables say about it as `meta`; no other shard's tables may be given.

    Raises:
        UserError: a table is damaged.
    """
    known: list[dict[str, Any]] = []
    for path in tables:
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
            said = table.select([name for name in table.schema.names if name not in own_columns(task)]).to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}): copy it again, or shard the corpus again.") from None
        known = [one | other for one, other in zip(known, said, strict=True)] if known else said
    for number, row in enumerate(rows):
        yield row | {"meta": known[number] if known else {}}
