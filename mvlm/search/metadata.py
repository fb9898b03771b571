"""What tables beside the shards say about an image that was found: whose it is, and under which licence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvlm.data.shards.tables import columns_of
from mvlm.search.find import ImageIndex

SHOWN = ("name", "set", "title", "author", "licence", "licence_url")
"""Columns that are shown with an image if the corpus has them, as corpora of icons do."""

DRAWING = "svg"
"""The column that contains a drawing's source."""

SHARDS = 256
"""Shards whose columns, other than drawings, are cached: 2 MB for a shard of 12,000 icons."""


class Metadata:
    """Metadata for the images of an index, read for a whole shard when one of its images is first found."""

    def __init__(self, index: ImageIndex) -> None:
        self._index = index
        self._shown = lru_cache(SHARDS)(self._read_shown)

    def of(self, image: int) -> dict[str, Any]:
        """The columns `SHOWN` that have a value, and `svg`: whether there is a drawing.

        Raises:
            UserError: the shards were moved or changed.
        """
        shard, row = self._index.place(image)
        values = {name: column[row].as_py() for name, column in self._shown(shard).items()}
        return {name: value for name, value in values.items() if value} | {DRAWING: bool(values.get(DRAWING))}

    def drawings(self, images: Sequence[int]) -> list[str | None]:
        """The SVG of each image, None if there is none. One shard's are in memory at a time: 20 MB for 12,000 icons.

        Raises:
            UserError: the shards were moved or changed.
        """
        places = [self._index.place(image) for image in images]
        found: list[str | None] = [None] * len(images)
        for shard in {shard for shard, _ in places}:
            table, _ = columns_of(*self._index.shard(shard), [DRAWING])
            for number, (of, row) in enumerate(places):
                if of == shard and DRAWING in table.column_names:
                    found[number] = table[DRAWING][row].as_py() or None
        return found

    def _read_shown(self, shard: str) -> dict[str, pa.ChunkedArray]:
        """The columns `SHOWN`, and whether there is a drawing; drawings themselves are read when asked for."""
        table, _ = columns_of(*self._index.shard(shard), (*SHOWN, DRAWING))
        columns = {name: table[name] for name in table.column_names}
        if DRAWING in columns:
            columns[DRAWING] = pc.greater(pc.fill_null(pc.binary_length(columns[DRAWING]), 0), 0)
        return columns
