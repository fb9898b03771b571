"""Micro-batches with which steps are counted: pairs with captions of given lengths, and images without pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mvlm.batch import Batch
from mvlm.config.schema import Data, Objectives
from mvlm.data.loading.collate import collate_pairs
from mvlm.data.samples.pairs import Pair
from mvlm.model.masking import patch_mask, token_mask
from mvlm.model.maskvlm import MaskVLM


def synthetic_batch(model: MaskVLM, data: Data, lengths: Sequence[int]) -> Batch:
    """A micro-batch of pairs with captions of so many tokens, two of them special; its images are on torch's "meta"."""
    side = model.grid[0] * model.vision.patch
    images_VBCHW = torch.empty(2 - data.shared_view, len(lengths), 3, side, side, device="meta").byte()
    pairs = [_synthetic_pair(model.objectives, model.grid, length) for length in lengths]
    return collate_pairs(pairs, images_VBCHW, 0, data.text_length)


def _synthetic_pair(objectives: Objectives, grid: tuple[int, int], length: int) -> Pair:
    rng, text_L = np.random.default_rng(0), np.arange(length)
    special_L = (text_L == 0) | (text_L == length - 1)
    masked_text_L, target_L = token_mask(rng, text_L, special_L, objectives, mask_id=0, random_ids=text_L)
    return Pair(
        images=np.empty(0),
        flip=False,
        position=0,
        row=0,
        patch_mask_N=patch_mask(rng, grid, objectives),
        text_L=text_L,
        masked_text_L=masked_text_L,
        target_L=target_L,
    )
