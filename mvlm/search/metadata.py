"""What the tables beside the shards say of an image that was found: whose it is, and under which licence."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvlm.data.shards.tables import columns_of
from mvlm.errors import UserError
from mvlm.search.find import ImageIndex

SHOWN = ("name", "set", "title", "author", "licence", "licence_url")
"""Columns that are shown with an image, where the corpus has them: those of icons."""

DRAWING = "svg"
"""The column that holds a drawing's source."""

SHARDS, SOURCES = 256, 2
"""Whose columns are held: 2 MB a shard of 12,000 icons, and 20 MB with the drawings."""


class Metadata:
    """Of the images of an index, a shard's at a time, when one of it is first found."""

    def __init__(self, index: ImageIndex) -> None:
        self._index = index
        self._shown, self._drawings = lru_cache(SHARDS)(self._read_shown), lru_cache(SOURCES)(self._read_drawings)

    def of(self, image: int) -> dict[str, Any]:
        """The columns `SHOWN` that have a value, and `svg`, whether there is a drawing to copy.

        Raises:
            UserError: the shards were moved or changed.
        """
        shard, row = self._index.place(image)
        values = {name: column[row].as_py() for name, column in self._shown(shard).items()}
        return {name: value for name, value in values.items() if value} | {DRAWING: bool(values.get(DRAWING))}

    def drawing(self, image: int) -> str:
        """The SVG of an image.

        Raises:
            UserError: the corpus keeps none of it, or the shards were moved or changed.
        """
        shard, row = self._index.place(image)
        table = self._drawings(shard)
        svg = table[DRAWING][row].as_py() if DRAWING in table.column_names else None
        if not svg:
            raise UserError("There is no drawing to copy of this picture: the corpus keeps the picture alone.")
        return str(svg)

    def _read_shown(self, shard: str) -> dict[str, pa.ChunkedArray]:
        """The columns `SHOWN`, and of drawings whether there is one; they themselves are read when one is copied."""
        table, _ = columns_of(*self._index.shard(shard), (*SHOWN, DRAWING))
        columns = {name: table[name] for name in table.column_names}
        if DRAWING in columns:
            columns[DRAWING] = pc.greater(pc.fill_null(pc.binary_length(columns[DRAWING]), 0), 0)
        return columns

    def _read_drawings(self, shard: str) -> pa.Table:
        return columns_of(*self._index.shard(shard), [DRAWING])[0]
