"""From samples to a micro-batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mvlm.batch import IGNORE, Batch, LabelledBatch, MaskedPlaces, Packing, apply
from mvlm.data.samples.captions import FINE, CaptionTokenizer, Rounding, round_in_bits
from mvlm.data.samples.labelled import Labelled
from mvlm.data.samples.padding import pad, round_up
from mvlm.data.samples.pairs import Pair

B = TypeVar("B")


def collate(samples: Sequence[Any], images_VBCHW: Tensor, captions: CaptionTokenizer) -> Any:
    """Stack samples of one kind; text is padded to the longest of them, rounded up but within `captions.length`.

    Args:
        images_VBCHW: the samples' images, uint8; they are kept, not copied.
    """
    return BATCHES[type(samples[0])](samples, images_VBCHW, captions.pad_id, captions.length, captions.rounding)


def collate_pairs(
    samples: Sequence[Pair], images_VBCHW: Tensor, pad_id: int, text_length: int, rounding: Rounding = FINE
) -> Batch:
    image_BCHW = images_VBCHW[0]
    text_BL, valid_BL = pad([sample.text_L for sample in samples], pad_id, text_length, rounding)
    patch_mask_BN = torch.from_numpy(np.stack([sample.patch_mask_N for sample in samples]))
    target_BL = pad([sample.target_L for sample in samples], IGNORE, text_length, rounding)[0]
    return Batch(
        image_BCHW=image_BCHW,
        masked_image_BCHW=images_VBCHW[-1] if len(images_VBCHW) > 1 else image_BCHW,
        patch_mask_BN=patch_mask_BN,
        text_BL=text_BL,
        valid_BL=valid_BL,
        masked_text_BL=pad([sample.masked_text_L for sample in samples], pad_id, text_length, rounding)[0],
        target_BL=target_BL,
        position_B=torch.tensor([sample.position for sample in samples]),
        image_id_B=torch.tensor([sample.row for sample in samples]),
        caption_id_B=torch.tensor([caption_id(sample.text_L) for sample in samples]),
        masked=masked_places(patch_mask_BN, target_BL, rounding),
        packing=pack(valid_BL, rounding),
    )


def collate_labelled(
    samples: Sequence[Labelled], images_VBCHW: Tensor, pad_id: int, text_length: int, rounding: Rounding = FINE
) -> LabelledBatch:
    texts = [text for nth in zip(*(sample.texts_TL for sample in samples), strict=True) for text in nth]
    text_RL, valid_RL = pad(texts, pad_id, text_length, rounding)
    return LabelledBatch(
        image_VBCHW=images_VBCHW,
        text_TBL=text_RL.view(-1, len(samples), text_RL.shape[1]),
        valid_TBL=valid_RL.view(-1, len(samples), text_RL.shape[1]),
        label_B=torch.from_numpy(np.stack([sample.label for sample in samples])),
        position_B=torch.tensor([sample.position for sample in samples]),
        row_B=torch.tensor([sample.row for sample in samples]),
    )


BATCHES: dict[type, Callable[[Sequence[Any], Tensor, int, int, Rounding], Any]] = {
    Pair: collate_pairs,
    Labelled: collate_labelled,
}
"""By kind of sample."""


def caption_id(text_L: np.ndarray) -> int:
    """An int64 that two captions share exactly when they are the same tokens (a 64-bit hash)."""
    digest = hashlib.blake2b(text_L.astype("<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def pin(batch: B) -> B:
    """Copy to page-locked memory what is not there; shared tensors stay shared."""
    return apply(batch, Tensor.pin_memory)


def masked_places(patch_mask_BN: Tensor, target_BL: Tensor, rounding: Rounding = FINE) -> MaskedPlaces:
    """The positions of masked patches and tokens.

    Raises:
        ValueError: the images do not mask equally many patches.
    """
    counts_B = patch_mask_BN.sum(1)
    if (counts_B != counts_B[0]).any():
        raise ValueError(f"The images of a batch mask equally many patches, not {counts_B.tolist()}.")
    masked_BL = target_BL != IGNORE
    longest, length = int(masked_BL.sum(1).max()), target_BL.shape[1]
    count = min(round_up(max(longest, 1), rounding.masked), length)
    # A stable sort of "not masked" brings the masked ones to the front, in their order.
    token_BC = (~masked_BL).int().argsort(dim=1, stable=True)[:, :count]
    is_masked_BC = masked_BL.gather(1, token_BC)
    token_M, filling_X = is_masked_BC.flatten().nonzero().flatten(), (~is_masked_BC).flatten().nonzero().flatten()
    if len(filling_X):
        missing = round_in_bits(len(token_M), rounding.predicted) - len(token_M)
        token_M = torch.cat([token_M, filling_X[:1].expand(missing)])
    return MaskedPlaces(
        patch_BC=patch_mask_BN.nonzero()[:, 1].view(len(patch_mask_BN), -1),
        patch_M=patch_mask_BN.flatten().nonzero().flatten(),
        token_BC=token_BC.masked_fill(~is_masked_BC, 0),
        token_M=token_M,
    )


def pack(valid_BL: Tensor, rounding: Rounding = FINE) -> Packing:
    """Leave out the padding; the number of tokens is rounded up, so that few lengths occur."""
    lengths_B = valid_BL.sum(1)
    token_T = valid_BL.flatten().nonzero().flatten()
    filling = torch.full((round_in_bits(len(token_T), rounding.packed) - len(token_T),), valid_BL.numel())
    ends = lengths_B.cumsum(0).tolist()
    starts = torch.tensor([0, *ends, len(token_T) + len(filling)], dtype=torch.int32)
    return Packing(torch.cat([token_T, filling]), starts)
