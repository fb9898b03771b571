"""From samples to a micro-batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from mvlm.batch import IGNORE, Batch

PAD_MULTIPLE = 8
"""Text is padded to a multiple of this: tensor cores want it, and few lengths mean few compiled shapes."""


@dataclass(frozen=True)
class Sample:
    """One pair of image and caption, prepared; the fields of `Batch` without B. A shared view is the same array."""

    image_CHW: np.ndarray  # uint8
    masked_image_CHW: np.ndarray  # uint8
    patch_mask_N: np.ndarray  # bool
    text_L: np.ndarray  # int64
    masked_text_L: np.ndarray  # int64
    target_L: np.ndarray  # int64
    position: int
    image_id: int


def collate(samples: Sequence[Sample], pad_id: int, text_length: int) -> Batch:
    """Stack samples; text is padded with `pad_id` to the longest of them, rounded up but within `text_length`."""
    image_BCHW = torch.from_numpy(np.stack([sample.image_CHW for sample in samples]))
    shared = all(sample.masked_image_CHW is sample.image_CHW for sample in samples)
    masked_image_BCHW = (
        image_BCHW if shared else torch.from_numpy(np.stack([sample.masked_image_CHW for sample in samples]))
    )
    text_BL, valid_BL = pad([sample.text_L for sample in samples], pad_id, text_length)
    return Batch(
        image_BCHW=image_BCHW,
        masked_image_BCHW=masked_image_BCHW,
        patch_mask_BN=torch.from_numpy(np.stack([sample.patch_mask_N for sample in samples])),
        text_BL=text_BL,
        valid_BL=valid_BL,
        masked_text_BL=pad([sample.masked_text_L for sample in samples], pad_id, text_length)[0],
        target_BL=pad([sample.target_L for sample in samples], IGNORE, text_length)[0],
        position_B=torch.tensor([sample.position for sample in samples]),
        image_id_B=torch.tensor([sample.image_id for sample in samples]),
        caption_id_B=torch.tensor([caption_id(sample.text_L) for sample in samples]),
    )


def pad(texts: Sequence[np.ndarray], pad_id: int, text_length: int) -> tuple[Tensor, Tensor]:
    """Pad token sequences of at most `text_length` to one length.

    Returns:
        text_BL int64 and valid_BL bool, False = padding.
    """
    longest = max(len(text) for text in texts)
    length = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, text_length)
    text_BL = np.full((len(texts), length), pad_id, dtype=np.int64)
    valid_BL = np.zeros((len(texts), length), dtype=bool)
    for row, text in enumerate(texts):
        text_BL[row, : len(text)] = text
        valid_BL[row, : len(text)] = True
    return torch.from_numpy(text_BL), torch.from_numpy(valid_BL)


def caption_id(text_L: np.ndarray) -> int:
    """An int64 that two captions share exactly when they are the same tokens (a 64-bit hash)."""
    digest = hashlib.blake2b(text_L.astype("<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def pin(batch: Batch) -> Batch:
    """Copy to page-locked memory, from which `Batch.to` copies asynchronously; shared tensors stay shared."""
    pinned: dict[int, Tensor] = {}
    for field in fields(batch):
        tensor = getattr(batch, field.name)
        if id(tensor) not in pinned:
            pinned[id(tensor)] = tensor.pin_memory()
    return replace(batch, **{field.name: pinned[id(getattr(batch, field.name))] for field in fields(batch)})
