"""The rows of a corpus that a condition keeps, as one bit per row, and one per pair if pairs are drawn."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa

from mvlm.data.shards.bits import Bits
from mvlm.data.shards.location import ShardLocation
from mvlm.data.shards.tables import columns_of, unknown_column
from mvlm.data.shards.where import Where, parse
from mvlm.errors import UserError


@dataclass(frozen=True)
class Selection:
    """The rows of a corpus that are kept, numbered among themselves in the corpus's order.

    Attributes:
        rows: which of all rows are kept.
        shard_rows: int64, the first row of each shard, kept or not, then the number of rows.
        pairs, shard_pairs: the same for pairs; None and empty if rows are drawn.
    """

    rows: Bits
    shard_rows: Sequence[int]
    pairs: Bits | None = None
    shard_pairs: Sequence[int] = ()

    @property
    def starts(self) -> Sequence[int]:
        """The first kept row of each shard, then the number of kept rows."""
        return array("q", map(self.rows.rank, self.shard_rows))

    @property
    def pair_starts(self) -> Sequence[int]:
        """The first kept pair of each shard, then the number of kept pairs."""
        assert self.pairs
        return array("q", map(self.pairs.rank, self.shard_pairs))

    @property
    def hash(self) -> str:
        return self.rows.hash


def select(location: ShardLocation, text: str, pairs: bool = False, without: Sequence[int] = ()) -> Selection:
    """The rows of a corpus that a condition keeps; "" keeps all.

    The columns that the condition names are read once, and held for one shard at a time.

    Args:
        pairs: pairs are drawn, one for each caption of a row.
        without: rows that are never kept, ascending.

    Raises:
        UserError: the condition cannot be read or names a column that no shard has, or a table is damaged.
    """
    where = parse(text) if text else None
    counted: list[np.ndarray] = []
    rows = Bits(_kept(location, where, without, counted if pairs else None))
    starts = array("q", accumulate(location.manifest.shards.rows, initial=0))
    if not pairs:
        return Selection(rows, starts)
    shard_pairs = array("q", accumulate((int(captions.sum()) for captions in counted), initial=0))
    of_rows = (rows.between(*ends) for ends in pairwise(starts))
    return Selection(rows, starts, Bits(map(np.repeat, of_rows, counted)), shard_pairs)


def _kept(
    location: ShardLocation, where: Where | None, without: Sequence[int], counted: list[np.ndarray] | None
) -> Iterator[np.ndarray]:
    """Which rows of each shard are kept, bool [rows]; each row's number of captions goes to `counted`, if given."""
    named = set(where.columns) if where else set[str]()
    wanted = named if counted is None else named | {"captions"}
    known, first = set[str](), 0
    left_out = np.asarray(without, np.int64)
    for number, count in enumerate(location.manifest.shards.rows):
        kept = np.ones(count, bool)
        if wanted:
            table, names = columns_of(location, number, wanted)
            known |= set(names)
            if where:
                kept = _holds(where, table)
            if counted is not None:
                counted.append(table["captions"].to_numpy().astype(np.uint32))
        gone = left_out[slice(*left_out.searchsorted([first, first + count]))] - first
        kept[gone] = False
        first += count
        yield kept
    if missing := sorted(named - known):
        raise unknown_column(missing[0], location.folder, known)


def _holds(where: Where, table: pa.Table) -> np.ndarray:
    """For which rows of a table a condition is true, bool [rows]."""
    from pyarrow import acero  # imports pandas, a quarter of a second to be spent only on a condition

    project = acero.ProjectNodeOptions([where.expression(table.schema)], ["holds"])
    plan = [
        acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
        acero.Declaration("project", project),
    ]
    try:
        found = acero.Declaration.from_sequence(plan).to_table(use_threads=False)["holds"]
    except pa.ArrowException as error:
        raise UserError(f"The condition {where.text!r} cannot be computed ({error}): simplify it.") from None
    return found.fill_null(False).to_numpy().astype(bool)


def selection_hash(selections: Sequence[Selection | None]) -> str:
    """The hash of the selections of several corpora; "" if there are none."""
    if not any(selections):
        return ""
    return hashlib.sha256("".join(each.hash if each else "all" for each in selections).encode()).hexdigest()
