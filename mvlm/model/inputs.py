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
    """Those that are encoded: for reconstruction of the modality itself and of the other from it, and for alignment."""
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
    reconstructed from the image; None where the objectives that read it have weight 0.

    Reconstructed without the other, a modality attends to zeros in its place."""
    aligned = masked if objectives.alignment_inputs == "masked" else whole
    context = masked if objectives.hide == "both" else whole
    if objectives.reconstruct_from == "self":  # what all tokens attend to alike tells them nothing
        context = Encodings(*map(torch.zeros_like, context))
    image = Stream(masked.image_BSD, context.text_BLD)
    text = Stream(masked.text_BLD, context.image_BSD, places.token_BC)
    return (
        aligned if aligns(objectives) else None,
        image if objectives.image else None,
        text if objectives.text else None,
    )
