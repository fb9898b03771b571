"""Shards in Python: a sequence of rows, each an image with its captions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from PIL import Image

from mvlm.config.places import as_paths
from mvlm.data.images.decode import BadImage, load_image
from mvlm.data.images.encoded import why_bad
from mvlm.data.shards.cache import Cache
from mvlm.data.shards.columns import Row
from mvlm.data.shards.corpus import UnreadableRow
from mvlm.data.shards.location import open_location
from mvlm.data.shards.mixture import Mixture
from mvlm.runtime.wording import counted


@dataclass(frozen=True)
class CaptionedImage:
    """A row of shards, checked against the checksums that were written with it.

    Attributes:
        captions: empty in rows for another task, whose sentences are in `own`.
        own: the columns that only rows for this task have, such as `question` and `answers`.
    """

    key: str
    captions: list[str]
    source: str
    width: int
    height: int
    own: dict[str, Any]
    where: str
    """The shard's file and the row in it."""
    _row: Row

    @property
    def image(self) -> Image.Image:
        """The image in RGB and upright, decoded on each access; of a pair, the left. Raises `UserError` if damaged."""
        return self.images[0]

    @property
    def images(self) -> list[Image.Image]:
        """All images of the row: one, or the left and the right one of a pair."""
        try:
            return [load_image(each.checked()) for each in self._row.encoded]
        except BadImage as error:
            raise UnreadableRow(self.where, self.key, why_bad(error)) from None

    @property
    def encoded(self) -> bytes:
        """The image's file, as it was sharded. Raises `UserError` if it is damaged."""
        try:
            return bytes(self._row.image)
        except BadImage as error:
            raise UnreadableRow(self.where, self.key, why_bad(error)) from None


class ShardSequence(Sequence[CaptionedImage]):
    """Rows of one or more corpora, end to end; make one with `mvlm.open`. A row is read only when it is accessed."""

    def __init__(self, mixture: Mixture) -> None:
        self._rows = mixture

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedImage]: ...
    def __getitem__(self, index: int | slice) -> CaptionedImage | list[CaptionedImage]:
        """Raises `IndexError` beyond the end and `UserError` if the row is not what was written."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        row = self._rows.row(number)
        return CaptionedImage(
            row.key, row.captions, row.source, row.width, row.height, row.own, self._rows.where(number), row
        )

    def __iter__(self) -> Iterator[CaptionedImage]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        folders = ", ".join(str(corpus.folder) for corpus in self._rows.corpora)
        return f"Shards({folders}: {counted(len(self), 'row')})"


def open(folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ShardSequence:
    """Shards as a sequence of rows: `mvlm.open("shards/train")[0].image`.

    Args:
        folders: one or more folders that `data_tools` wrote, or URLs such as `s3://bucket/shards`.

    Raises:
        UserError: there are no shards, they are unfinished, or their rows are for different tasks.
    """
    names = as_paths(folders)
    task = open_location(names[0], Cache()).manifest.task if names else ""
    return ShardSequence(Mixture(names, task=task))
