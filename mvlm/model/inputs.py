"""What each objective reads: which views of an image and of a text are encoded, and what becomes of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mvlm.batch import MaskedPlaces
from mvlm.config.schema import Objectives
from mvlm.kernels.fusion import Stream
from mvlm.kernels.views import Views


class Encodings(NamedTuple):
    """One view of both modalities."""

    image_BSD: Tensor
    text_BLD: Tensor


def aligns(objectives: Objectives) -> bool:
    """Whether images are contrasted or matched with texts."""
    return bool(objectives.itc or objectives.itm or objectives.extra)


def views_read(objectives: Objectives, modality: Literal["image", "text"]) -> Views:
    """The views to encode: for reconstructing the modality itself and the other from it, and for alignment."""
    itself, other = objectives.image, objectives.text
    if modality == "text":
        itself, other = other, itself
    if objectives.reconstruct_from == "self":
        other = 0.0
    aligned = aligns(objectives)
    masked_alignment = aligned and objectives.alignment_inputs == "masked"
    masked_context = bool(other) and objectives.hide == "both"
    return Views(
        whole=(aligned and not masked_alignment) or (bool(other) and not masked_context),
        masked=bool(itself) or masked_alignment or masked_context,
    )


def select(
    objectives: Objectives, whole: Encodings, masked: Encodings, places: MaskedPlaces
) -> tuple[Encodings | None, Stream | None, Stream | None]:
    """What is contrasted and matched, the masked image to be reconstructed from the text, and the masked text to be
    reconstructed from the image; None for what is only read by objectives of weight 0.

    A modality that is reconstructed without the other attends to zeros in its place."""
    aligned = masked if objectives.alignment_inputs == "masked" else whole
    context = masked if objectives.hide == "both" else whole
    if objectives.reconstruct_from == "self":  # zeros, on which all tokens look alike, tell them nothing
        context = Encodings(*map(torch.zeros_like, context))
    image = Stream(masked.image_BSD, context.text_BLD)
    text = Stream(masked.text_BLD, context.image_BSD, places.token_BC)
    return (
        aligned if aligns(objectives) else None,
        image if objectives.image else None,
        text if objectives.text else None,
    )
