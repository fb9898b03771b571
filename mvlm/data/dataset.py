"""Held-out rows as images and captions to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvlm.config import Config
from mvlm.data.captions import CaptionTokenizer
from mvlm.data.index import Mixture
from mvlm.data.rows import why_bad
from mvlm.data.transforms import BadImage, eval_view, open_picture
from mvlm.errors import UserError


class EvalDataset:
    """The first `limit` rows (0 = all) as plain images and all their captions.

    Attributes:
        captions: every caption of every row, row after row.
        owner: int64 [len(captions)], the row of each.
        tokens: the `CaptionTokenizer`.
    """

    def __init__(self, mixture: Mixture, tokenizer: Any, config: Config, limit: int = 0):
        self.mixture = mixture
        self.tokens = CaptionTokenizer(tokenizer, config.data.text_length)
        self.image_size = config.model.image_size
        self.rows = min(limit, len(mixture)) if limit else len(mixture)
        captions = [mixture.captions(row) for row in range(self.rows)]
        self.captions = [caption for of_row in captions for caption in of_row]
        self.owner = np.repeat(np.arange(self.rows), [len(of_row) for of_row in captions])

    def __len__(self) -> int:
        """Images."""
        return self.rows

    def images(self, rows: Sequence[int]) -> Tensor:
        """uint8 [B, 3, H, W], resized without a crop.

        Raises:
            UserError: an image cannot be decoded; names shard, row and key.
        """
        return torch.from_numpy(np.stack([self._view(row) for row in rows]))

    def texts(self, captions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """text_BL int64 and valid_BL bool of the captions with these indices."""
        return self.tokens.batch([self.captions[index] for index in captions])

    def _view(self, row: int) -> np.ndarray:
        content = self.mixture.row(row)
        try:
            return eval_view(open_picture(content.image), self.image_size)
        except BadImage as error:
            raise UserError(
                f"{self.mixture.where(row)} (key {content.key!r}): {why_bad(content.image, content.crc32, error)}: "
                "copy the shard again, or shard the corpus again, which sets such images aside."
            ) from error
