"""What every training data set does with a row: seeded draws, and another row in place of a damaged one.

Nothing here or in what it imports may import torch: loader processes must stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mvlm.config.schema import Data
from mvlm.data.images.decode import open_picture
from mvlm.data.images.encoded import BadImage, why_bad
from mvlm.data.images.transforms import train_view
from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.data.shards.columns import EncodedImage, Row
from mvlm.data.shards.corpus import UnreadableRow
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.model.masking import Purpose, generator

ATTEMPTS = 50
"""Rows tried in place of a bad one; if all of them are bad, nearly everything is."""

TAKEN_DOWN = "it was taken down"
"""A reason to replace a row without listing or counting it as faulty."""

REPLACED = 1 << 32
"""Occurrences from here on are of rows drawn in place of others."""


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used, and the position at which it was drawn."""

    row: int  # of the mixture
    where: str  # shard and row in it
    key: str
    reason: str
    position: int

    def __str__(self) -> str:
        return f"{self.where} (key {self.key!r}): {self.reason}"


@dataclass(frozen=True)
class Sample:
    """One prepared row."""

    images: np.ndarray  # uint8 [V, 3, H, W], in the loader's buffer, which `collate` gets separately
    flip: bool  # whether its views may be mirrored
    position: int
    row: int  # of the mixture, after any replacement
    faults: tuple[Fault, ...] = ()  # the rows that this one replaces


S = TypeVar("S", bound=Sample)

Draw = tuple[int, int, int]
"""Position, number (of what the mixture's epochs draw) and occurrence."""


class Visit(NamedTuple):
    """What is shown at a position. Everything drawn for it follows from its epoch, number and occurrence."""

    position: int
    row: int
    number: int
    occurrence: int
    caption: int | None  # which of the row's; None = any


Described = tuple[Row, S, Visit, list[Fault]]
"""A row, its sample without images, its visit and the rows it replaces so far."""


class ShardDataset(Generic[S]):
    """Samples of a mixture; each a function of (seed, position, number, occurrence) alone.

    Attributes:
        image_shape: [V, 3, H, W] of a sample's images, stacked.
        captions: the tokenizer for the sentences.
        is_continued: occurrences count over the whole run, since earlier stages have drawn other data.
    """

    image_shape: tuple[int, int, int, int]
    captions: CaptionTokenizer
    is_continued = False

    def __init__(self, mixture: Mixture, data: Data, image_size: int, seed: int):
        self.mixture, self.data, self.image_size, self.seed = mixture, data, image_size, seed

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.mixture.per_epoch

    def sample(self, position: int, number: int, occurrence: int = 0) -> S:
        """One sample, as `samples` prepares it, in its own memory."""
        views, *shape = self.image_shape
        return self.samples([(position, number, occurrence)], np.empty((views, 1, *shape), np.uint8))[0]

    def samples(self, draws: Sequence[Draw], images_VBCHW: np.ndarray) -> list[S]:
        """Prepare rows as they are seen at their positions, counted in samples from the run's start.

        A row that is not as it was written, or has no good image, gives way to others, drawn for its position.
        Everything but the images is prepared first: an image empties the processor's caches, and a sentence read after
        one takes twice as long.

        Args:
            draws: the occurrence is how often the epoch has drawn the number before.
            images_VBCHW: where the images go, uint8.

        Raises:
            UserError: a shard has changed or is damaged as a whole, or no row drawn is good; names shard, row and key.
        """
        described = [self._described(*draw, images_VBCHW[:, at]) for at, draw in enumerate(draws)]
        return [self._with_images(*one) for one in described]

    def _described(self, position: int, number: int, occurrence: int, out_VCHW: np.ndarray) -> Described[S]:
        """A row and its sample, or those of the first row drawn in its place whose texts are as they were written."""
        faults: list[Fault] = []
        try:
            row, caption = self.mixture.numbers.visit(number)
        except UnreadableRow as error:
            row = self.mixture.numbers.first_row(number)
            visit = self._replace(faults, Fault(row, error.where, error.key, error.reason, position))
        else:
            visit = Visit(position, row, number, occurrence, caption)
        return self._read(visit, out_VCHW, faults)

    def _read(self, visit: Visit, out_VCHW: np.ndarray, faults: list[Fault]) -> Described[S]:
        while True:
            if self.mixture.is_taken_down(visit.row):
                fault = Fault(visit.row, self.mixture.where(visit.row), "", TAKEN_DOWN, visit.position)
                visit = self._replace(faults, fault)
                continue
            try:
                content = self.mixture.row(visit.row)
            except UnreadableRow as error:
                visit = self._replace(faults, Fault(visit.row, error.where, error.key, error.reason, visit.position))
            else:
                return content, self.describe(content, visit, out_VCHW), visit, faults

    def _with_images(self, content: Row, sample: S, visit: Visit, faults: list[Fault]) -> S:
        """A sample whose images have been drawn, or the one that replaces it."""
        while True:
            try:
                self._draw_images(content, sample, visit)
            except BadImage as error:
                where = self.mixture.where(visit.row)
                visit = self._replace(faults, Fault(visit.row, where, content.key, why_bad(error), visit.position))
                content, sample, visit, _ = self._read(visit, sample.images, faults)
            else:
                return replace(sample, faults=tuple(faults)) if faults else sample

    def _replace(self, faults: list[Fault], fault: Fault) -> Visit:
        """List a bad row and return the next to try at its position; raises `UserError` if too many were bad, or if its
        shard is being changed, which another row would only hide."""
        faults.append(fault)
        if self.mixture.changed(fault.row):
            raise UserError(
                f"{fault}, and its shard was written to since it was opened: copy or shard it again, then start again."
            )
        if len(faults) > ATTEMPTS:
            raise UserError(
                f"{faults[0]}, and the {ATTEMPTS} rows drawn in its place cannot be used either: "
                "check the shards with `mvlm-data verify`."
            )
        rng = generator(self.seed, Purpose.REPLACEMENT, 0, len(faults), fault.position)
        row = int(rng.integers(len(self.mixture)))
        return Visit(fault.position, row, row, REPLACED + fault.position, None)

    def fetch(self, number: int) -> None:
        """Bring what is drawn by that number to this node; raises `UserError` if it cannot be fetched."""
        self.mixture.numbers.fetch(number)

    def sentences(self, content: Row) -> Sequence[str]:
        """All sentences that may be read from a row."""
        raise NotImplementedError

    def describe(self, content: Row, visit: Visit, out_VCHW: np.ndarray) -> S:
        """The sample of a row, whose images are still to be drawn into `out_VCHW`."""
        raise NotImplementedError

    def longest(self, position: int) -> S:
        """A synthetic sample without image that takes as much memory as any can."""
        raise NotImplementedError

    def rng(self, purpose: Purpose, visit: Visit) -> np.random.Generator:
        epoch = visit.position // len(self)
        return generator(self.seed, purpose, epoch, visit.occurrence, visit.number)

    def _draw_images(self, content: Row, sample: S, visit: Visit) -> None:
        """Draw the views of a sample's image, or one view of each of its two; raises `BadImage`."""
        purposes = (Purpose.VIEW, Purpose.MASKED_VIEW)[: len(sample.images)]
        draws = [self.rng(purpose, visit) for purpose in purposes]
        if len(content.encoded) == 1:
            self._show(content.encoded[0], sample.flip, draws, sample.images)
            return
        for at, encoded in enumerate(content.encoded):
            self._show(encoded, sample.flip, draws[at : at + 1], sample.images[at : at + 1])

    def _show(
        self, encoded: EncodedImage, flip: bool, draws: Sequence[np.random.Generator], out_VCHW: np.ndarray
    ) -> None:
        """Write a view of an encoded image for each of `draws`."""
        size, area, operations = self.image_size, self.data.crop_scale, self.data.randaugment
        picture = open_picture(encoded.checked())
        for view_CHW, rng in zip(out_VCHW, draws, strict=True):
            train_view(picture, size, rng, area, flip, operations, view_CHW, self.data.randaugment_kind)
