"""What the loader hands to the model and the model hands back.

Shape legend, used as name suffixes everywhere:
    B pairs in the micro-batch    G pairs in the global batch       K candidates in an ITM group
    N patches                     S = N + 1 tokens with CLS         L text tokens
    D width                       E contrastive width               V vocabulary
    Q = 3 * P * P values of a patch of P pixels a side              M hidden patches or hidden tokens
    C, H, W channels, height, width of an image
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

IGNORE = -100
"""Target of a token that is not predicted (the convention of torch's cross-entropy)."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch of image-text pairs at consecutive positions of the global batch.

    `masked_image_BCHW` is the view whose patches are hidden; it is the very same tensor as
    `image_BCHW` unless the configuration asks for two views.
    """

    image_BCHW: Tensor  # uint8
    masked_image_BCHW: Tensor  # uint8
    patch_mask_BN: Tensor  # bool, True = hidden
    text_BL: Tensor  # int64 token ids, special tokens included
    valid_BL: Tensor  # bool, False = padding
    masked_text_BL: Tensor  # int64, text with tokens hidden
    target_BL: Tensor  # int64, the hidden token's id or IGNORE
    position_B: Tensor  # int64, samples seen before this pair, counted from the run's start
    image_id_B: Tensor  # int64, equal ids = the same image
    caption_id_B: Tensor  # int64, equal ids = the same token sequence

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, asynchronously where the memory is pinned; shared tensors stay shared."""
        moved: dict[int, Tensor] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device, non_blocking=True)
        return replace(self, **{f.name: moved[id(getattr(self, f.name))] for f in fields(self)})

    def __len__(self) -> int:
        return self.text_BL.shape[0]


@dataclass(frozen=True)
class Encoded:
    """The contrastive side of a (micro-)batch: projected features and what tells equal pairs apart."""

    image_BE: Tensor  # unit length
    text_BE: Tensor  # unit length
    image_id_B: Tensor
    caption_id_B: Tensor


@dataclass(frozen=True)
class Contrast:
    """The global batch as the contrastive loss of one micro-batch needs to see it; nothing carries gradient."""

    image_GE: Tensor  # unit length
    text_GE: Tensor  # unit length
    ids_G2: Tensor | None  # int64 image and caption; None where pairs that share one are negatives all the same
    lse_G2: Tensor  # fp32 log-sum-exp over the similarities of each image with all texts, of each text with all images


@dataclass(frozen=True)
class Pool:
    """The global batch as one micro-batch needs to see it.

    Every loss computed against a pool is scaled so that its plain mean over the `parts` micro-batches
    (ranks x accumulation, which is what data parallelism averages) is the global batch's loss, and so
    is its gradient.
    """

    contrast: Callable[[Encoded, Tensor], Contrast]  # own features and the temperature -> those of everybody
    start: int  # where the micro-batch's own pairs begin in the global batch
    parts: int  # micro-batches in the global batch
    hidden_tokens: Tensor  # scalar, in the whole global batch
    hidden_patches: Tensor  # scalar, in the whole global batch


Losses = dict[str, Tensor]
"""Scalars named "image", "text", "itc", "itm"; an objective of weight 0 is absent."""
