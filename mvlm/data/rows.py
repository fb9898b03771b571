"""What every training data set does with a row: seeded draws, and another row in place of one that is no image.

Nothing here or in what it imports may import torch: loader processes are to stay small.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from mvlm.config import Config
from mvlm.data.captions import CaptionTokenizer
from mvlm.data.decoding import BadImage, open_picture
from mvlm.data.index import Mixture, Row
from mvlm.data.transforms import train_view
from mvlm.errors import UserError
from mvlm.masking import Purpose, generator

if TYPE_CHECKING:
    from torch import Tensor

ATTEMPTS = 50
"""Rows tried in place of a bad one; where all of them are bad, nearly everything is."""

LOOKED_AT = 256
"""Rows whose texts are counted before a run begins."""

REPLACED = 1 << 32
"""Occurrences from here on are of rows drawn in place of others."""


@dataclass(frozen=True)
class Fault:
    """A row whose image cannot be used, and at which position that was met."""

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

    images: np.ndarray  # uint8 [V, 3, H, W], where the loader wants them; it hands them to `collate` itself
    flip: bool  # whether its views may be mirrored
    position: int
    row: int  # of the mixture, after any replacement
    faults: tuple[Fault, ...] = ()  # the rows that this one stands for


S = TypeVar("S", bound=Sample)
B_co = TypeVar("B_co", covariant=True)

Draw = tuple[int, int, int]
"""Position, row and occurrence."""


class Dataset(Protocol[S, B_co]):
    """What the loader reads from: `Rows` and its like."""

    image_shape: tuple[int, int, int, int]

    def samples(self, draws: Sequence[Draw], images_VBCHW: np.ndarray) -> list[S]: ...

    def bring(self, row: int) -> None: ...

    def collate(self, samples: Sequence[S], images_VBCHW: Tensor) -> B_co: ...


class Rows(Generic[S]):
    """Samples of a mixture; each a function of (seed, position, row, occurrence) alone.

    Attributes:
        image_shape: [V, 3, H, W] of a sample's images, stacked.
        captions: what the sentences are read by.
    """

    image_shape: tuple[int, int, int, int]
    captions: CaptionTokenizer

    def __init__(self, mixture: Mixture, config: Config):
        self.mixture = mixture
        self.config = config

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.mixture.per_epoch

    def sample(self, position: int, row: int, occurrence: int = 0) -> S:
        """One sample, as `samples` prepares it, in memory of its own."""
        views, *shape = self.image_shape
        return self.samples([(position, row, occurrence)], np.empty((views, 1, *shape), np.uint8))[0]

    def samples(self, draws: Sequence[Draw], images_VBCHW: np.ndarray) -> list[S]:
        """Prepare rows as they are seen at their positions, counted in samples from the run's start.

        A row without a good image gives way to others, drawn for its position. All that is no image is prepared
        first: an image empties the processor's caches, and a sentence that follows one takes twice its time.

        Args:
            draws: the occurrence is how often the epoch has drawn the row before.
            images_VBCHW: where the images go, uint8.

        Raises:
            UserError: a shard has changed or is damaged, or no row drawn has a good image; names shard, row and key.
        """
        contents = [self.mixture.row(row) for _, row, _ in draws]
        described = [
            self.describe(content, *draw, images_VBCHW[:, at])
            for at, (content, draw) in enumerate(zip(contents, draws, strict=True))
        ]
        return [
            self._with_images(content, sample, occurrence)
            for content, sample, (_, _, occurrence) in zip(contents, described, draws, strict=True)
        ]

    def _with_images(self, content: Row, sample: S, occurrence: int) -> S:
        """A sample whose images have been drawn, or the one that replaces it."""
        faults: list[Fault] = []
        position = sample.position
        while True:
            try:
                self._draw_images(content, sample, occurrence)
            except BadImage as error:
                faults.append(self._fault(content, position, sample.row, error))
            else:
                return replace(sample, faults=tuple(faults)) if faults else sample
            if len(faults) > ATTEMPTS:
                raise UserError(
                    f"{faults[0]}, and so it is with the {ATTEMPTS} rows drawn in its place: "
                    "check the shards with `python -m data_tools verify`."
                )
            rng = generator(self.config.run.seed, Purpose.REPLACEMENT, 0, len(faults), position)
            row, occurrence = int(rng.integers(len(self.mixture))), REPLACED + position
            content = self.mixture.row(row)
            sample = self.describe(content, position, row, occurrence, sample.images)

    def bring(self, row: int) -> None:
        """Have the shard of a row on this node; raises `UserError` where it cannot be fetched."""
        self.mixture.bring(row)

    def sentences(self, content: Row) -> Sequence[str]:
        """All that may be read of a row."""
        raise NotImplementedError

    def describe(self, content: Row, position: int, row: int, occurrence: int, out_VCHW: np.ndarray) -> S:
        """The sample of a row, whose images are still to be drawn into `out_VCHW`."""
        raise NotImplementedError

    def longest(self, position: int) -> S:
        """A made sample without image that takes as much memory as one may."""
        raise NotImplementedError

    def collate(self, samples: Sequence[S], images_VBCHW: Tensor) -> Any:
        """The batch of these samples, whose images stand in a tensor that it keeps."""
        raise NotImplementedError

    def told_cut(self) -> str:
        """A sentence when texts are cut of the first rows that a run draws; "" where all of them are read whole.

        Rows at URLs are not looked at: they would have to be fetched before the run begins.
        """
        draws = self.mixture.draws(self.config.run.seed, self.config.data)
        drawn, _ = draws(np.arange(min(LOOKED_AT, len(self))))
        contents = [self.mixture.row(int(row)) for row in drawn if not self.mixture.locate(int(row))[0].place.cached]
        cut = self.captions.told_cut([sentence for content in contents for sentence in self.sentences(content)])
        where = f"Texts are cut at data.text_length = {self.config.data.text_length}"
        return f"{where}: of the first rows' {cut}, and lose their ends; raise it to read them whole." if cut else ""

    def rng(self, purpose: Purpose, position: int, occurrence: int, row: int) -> np.random.Generator:
        return generator(self.config.run.seed, purpose, position // len(self), occurrence, row)

    def _draw_images(self, content: Row, sample: S, occurrence: int) -> None:
        """The views of a sample's image, or one view of each of its two; raises `BadImage`."""
        purposes = (Purpose.VIEW, Purpose.MASKED_VIEW)[: len(sample.images)]
        draws = [self.rng(purpose, sample.position, occurrence, sample.row) for purpose in purposes]
        if content.second is None:
            self._show(content.image, content.crc32, sample.flip, draws, sample.images)
        else:
            self._show(content.image, content.crc32, sample.flip, draws[:1], sample.images[:1])
            self._show(*content.second, sample.flip, draws[1:], sample.images[1:])

    def _show(
        self, data: memoryview, crc32: int, flip: bool, draws: Sequence[np.random.Generator], out_VCHW: np.ndarray
    ) -> None:
        """Write a view of an encoded image for each of `draws`."""
        size, settings = self.config.model.image_size, self.config.data
        area, operations = settings.crop_scale, settings.randaugment
        try:
            picture = open_picture(data)
            for view_CHW, rng in zip(out_VCHW, draws, strict=True):
                train_view(picture, size, rng, area, flip, operations, view_CHW)
        except BadImage as error:
            raise BadImage(why_bad(data, crc32, error)) from None

    def _fault(self, content: Row, position: int, row: int, error: BadImage) -> Fault:
        """What is wrong with a row, unless its shard is being changed: for that no other row is an answer."""
        fault = Fault(row, self.mixture.where(row), content.key, str(error), position)
        if self.mixture.changed(row):
            raise UserError(
                f"{fault}, and its shard was written to since it was opened: copy or shard it again, then start again."
            )
        return fault


def why_bad(data: memoryview, crc32: int, error: BadImage) -> str:
    """Half a sentence: whether the image came so or was damaged since it was written."""
    if zlib.crc32(data) != crc32:
        return "the image is not the one that was written (its checksum differs)"
    return f"the image cannot be decoded ({error})"
