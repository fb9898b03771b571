"""Held-out images with a true and a false sentence each."""

from __future__ import annotations

from typing import Any

import numpy as np

from mvlm.data.samples.evaluation import EvalDataset
from mvlm.data.shards.mixture import Mixture


class FoilDataset(EvalDataset):
    """The first `limit` rows (0 = all) of shards of the task "foils".

    Attributes:
        captions: the true and the false sentence of each row, one after the other.
        swapped: what the false sentence exchanges, for each row.
    """

    def __init__(self, mixture: Mixture, tokenizer: Any, text_length: int, image_size: int, limit: int = 0) -> None:
        super().__init__(mixture, tokenizer, text_length, image_size, limit)
        rows = [mixture.row(row).own for row in range(self.rows)]
        self.captions = [sentence for own in rows for sentence in (own["caption"], own["foil"])]
        self.owner = np.arange(self.rows).repeat(2)
        self.swapped = [own["swapped"] for own in rows]
