"""Held-out rows as images and captions to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvlm.data.images.decode import open_picture
from mvlm.data.images.encoded import BadImage, why_bad
from mvlm.data.images.transforms import eval_view
from mvlm.data.samples.labelled import SENTENCES
from mvlm.data.samples.padding import BatchTokenizer
from mvlm.data.samples.pictures import ImagesAndTexts
from mvlm.data.samples.standing_in import StandIns
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError


class EvalImages:
    """The first `rows` rows of a mixture as plain images.

    Args:
        image_size: their side as the model reads them, in pixels.

    Attributes:
        stand_ins: for images that cannot be read; None = raise at once.
    """

    def __init__(self, mixture: Mixture, rows: int, image_size: int):
        self.mixture, self.rows, self.image_size = mixture, rows, image_size
        self.stand_ins: StandIns | None = None

    def __len__(self) -> int:
        """The number of images."""
        return self.rows

    def images(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W], resized without a crop.

        Raises:
            UserError: an image cannot be decoded, or a row is not as it was written; names shard, row and key.
        """
        return torch.from_numpy(np.stack([self._views(row)[0] for row in rows]))

    def _views(self, row: int) -> list[np.ndarray]:
        """The images of a row: one, or the two of a pair."""
        read = partial(self._read, row)
        return self.stand_ins.or_read(read, self.views, self.image_size) if self.stand_ins else read()

    @property
    def views(self) -> int:
        """Images per row."""
        return 2 if self.mixture.task == "nlvr2" else 1

    def _read(self, row: int) -> list[np.ndarray]:
        content = self.mixture.row(row)
        try:
            return [eval_view(open_picture(encoded.checked()), self.image_size) for encoded in content.encoded]
        except BadImage as error:
            raise UserError(
                f"{self.mixture.where(row)} (key {content.key!r}): {why_bad(error)}: "
                "copy the shard again, or shard the corpus again, which sets such images aside."
            ) from error


class EvalDataset(EvalImages, ImagesAndTexts):
    """The first `limit` rows (0 = all) as plain images and all their captions.

    Attributes:
        captions: every caption of every row, row after row.
        owner: int64 [len(captions)], the row of each.
        tokens: the `BatchTokenizer`.
    """

    def __init__(self, mixture: Mixture, tokenizer: Any, text_length: int, image_size: int, limit: int = 0):
        super().__init__(mixture, min(limit, len(mixture)) if limit else len(mixture), image_size)
        self.tokens = BatchTokenizer(tokenizer, text_length)
        captions = [mixture.row(row).captions for row in range(self.rows)]
        self.captions = [caption for of_row in captions for caption in of_row]
        self.owner = np.repeat(np.arange(self.rows), [len(of_row) for of_row in captions])

    @cached_property
    def reported_length(self) -> str:
        """How much of the texts is read, as part of a sentence."""
        cut = self.tokens.describe_truncation(self.captions) or "none is longer"
        return f"texts cut at {self.tokens.length} tokens ({cut})"


class LabelledEvalDataset(EvalDataset):
    """The same for a fine-tuning task, whose rows have one sentence each, here in `captions`.

    Attributes:
        keys: of the rows.
        values: the task's own columns of each row.
    """

    def __init__(self, mixture: Mixture, task: str, tokenizer: Any, text_length: int, image_size: int, limit: int = 0):
        super().__init__(mixture, tokenizer, text_length, image_size, limit)
        rows = [mixture.row(row) for row in range(self.rows)]
        self.keys = [row.key for row in rows]
        self.values = [row.own for row in rows]
        self.captions = [SENTENCES[task](own)[0] for own in self.values]
        self.owner = np.arange(self.rows)

    def samples(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """image_VBCHW uint8, text_BL int64 and valid_BL bool; raises like `images`."""
        image_BVCHW = np.stack([np.stack(self._views(row)) for row in rows])
        return torch.from_numpy(image_BVCHW.swapaxes(0, 1).copy()), *self.texts(rows)
