"""Rows of image-caption corpora as pretraining samples.

Nothing here may import torch when loaded: loader processes must stay small.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvlm.config.schema import Data, Objectives
from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.data.samples.dataset import S, Sample, ShardDataset, Visit
from mvlm.data.shards.columns import Row
from mvlm.data.shards.mixture import Mixture
from mvlm.model.masking import Purpose, block_grid, patch_mask, token_mask

SIDES = re.compile(r"\b(left|right)(hand|most|wards?)?\b", re.IGNORECASE)
"""Words that a mirrored image would make untrue."""


class CaptionDataset(ShardDataset[S]):
    """Samples of an image and one of its captions."""

    def sentences(self, content: Row) -> Sequence[str]:
        return content.captions

    def choose(self, captions: list[str], visit: Visit) -> str:
        if visit.caption is not None:
            return captions[visit.caption]
        match self.data.caption:
            case "draw":
                return captions[int(self.rng(Purpose.CAPTION, visit).integers(len(captions)))]
            case "cycle":
                epochs = 0 if self.is_continued else visit.position // len(self)
                return captions[(epochs + visit.occurrence) % len(captions)]
            case "first":
                return captions[0]

    def is_symmetric(self, caption: str) -> bool:
        """Whether the image may be mirrored."""
        return self.data.flip and not SIDES.search(caption)


@dataclass(frozen=True, kw_only=True)
class Pair(Sample):
    """One pair of image and caption; the fields of `Batch` without B.

    The last of `images` is the one whose patches are masked; there are two unless the view is shared.
    """

    patch_mask_N: np.ndarray  # bool
    text_L: np.ndarray  # int64
    masked_text_L: np.ndarray  # int64
    target_L: np.ndarray  # int64


@dataclass(frozen=True, kw_only=True)
class Captioned(Sample):
    """An image and its caption as text, for another library's tokenizer."""

    caption: str


class PlainDataset(CaptionDataset[Captioned]):
    """Augmented images and their captions, without masks."""

    def __init__(self, mixture: Mixture, data: Data, image_size: int, seed: int):
        super().__init__(mixture, data, image_size, seed)
        self.image_shape = (1, 3, image_size, image_size)

    def describe(self, content: Row, visit: Visit, out_VCHW: np.ndarray) -> Captioned:
        caption = self.choose(content.captions, visit)
        return Captioned(
            images=out_VCHW,
            flip=self.is_symmetric(caption),
            caption=caption,
            position=visit.position,
            row=visit.row,
        )


class PairDataset(CaptionDataset[Pair]):
    """Pretraining samples.

    Args:
        mixture: the shards to train on.
        tokenizer: a fast transformers tokenizer with mask and pad tokens.
        grid: rows and columns of patches of the image encoder.

    Raises:
        UserError: the mask blocks do not tile the grid.
    """

    def __init__(
        self,
        mixture: Mixture,
        tokenizer: Any,
        data: Data,
        objectives: Objectives,
        image_size: int,
        seed: int,
        grid: tuple[int, int],
    ):
        super().__init__(mixture, data, image_size, seed)
        block_grid(grid, objectives.image_mask_block)
        self.captions = CaptionTokenizer(tokenizer, data.text_length)
        self.objectives, self.grid = objectives, grid
        self.image_shape = (1 if data.shared_view else 2, 3, image_size, image_size)

    def describe(self, content: Row, visit: Visit, out_VCHW: np.ndarray) -> Pair:
        caption = self.choose(content.captions, visit)
        text_L = self.captions.encode(caption)
        masked_text_L, target_L = self._mask_tokens(text_L, self.rng(Purpose.TOKENS, visit))
        return Pair(
            images=out_VCHW,
            flip=self.is_symmetric(caption),
            patch_mask_N=patch_mask(self.rng(Purpose.PATCHES, visit), self.grid, self.objectives),
            text_L=text_L,
            masked_text_L=masked_text_L,
            target_L=target_L,
            position=visit.position,
            row=visit.row,
        )

    def longest(self, position: int) -> Pair:
        drawn = np.random.default_rng(position)
        text_L = self.captions.longest()
        masked_text_L, target_L = self._mask_tokens(text_L, drawn)
        return Pair(
            images=np.empty(0),
            flip=False,
            patch_mask_N=patch_mask(drawn, self.grid, self.objectives),
            text_L=text_L,
            masked_text_L=masked_text_L,
            target_L=target_L,
            position=position,
            row=position,
        )

    def _mask_tokens(self, text_L: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        captions = self.captions
        special_L = captions.special(text_L)
        return token_mask(rng, text_L, special_L, self.objectives, captions.mask_id, captions.ordinary_ids)
