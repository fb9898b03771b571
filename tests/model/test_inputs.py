"""Encoders compute only what the objectives use."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from test_maskvlm import WIDER, build, make_batch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mvlm.config.schema import Objectives
from mvlm.model.inputs import views_read

DROPPED = "objectives.image_masking=drop"
BOTH = ("objectives.hide=both", "objectives.alignment_inputs=masked")


def encoded_tokens(tokenizer: PreTrainedTokenizerBase, *overrides: str) -> tuple[int, int]:
    """How many image and text tokens of 8 pairs enter the first block of their encoders.

    12 of an image's 16 patches are masked; texts are packed, without padding.
    """
    model, batch = build(tokenizer, *WIDER, *overrides), make_batch(patches=16)
    counts = {"image": 0, "text": 0}

    def counter(modality: str) -> object:
        def hook(block: object, inputs: tuple[Tensor, ...]) -> None:
            counts[modality] += inputs[0].shape[:-1].numel()

        return hook

    model.vision.vit.blocks[0].register_forward_pre_hook(counter("image"))
    model.text.model.encoder.layer[0].register_forward_pre_hook(counter("text"))
    with torch.no_grad():
        model(batch)
    return counts["image"], counts["text"]


@pytest.mark.parametrize(
    ("overrides", "images", "texts"),
    [
        ((), 17 + 17, 2),
        (("objectives.hide=both",), 17 + 17, 2),
        (("objectives.reconstruct_from=self", "objectives.alignment_inputs=masked"), 17, 1),
        (BOTH, 17, 1),
        ((*BOTH, DROPPED), 5, 1),
        ((DROPPED, "objectives.alignment_inputs=masked"), 17 + 5, 2),  # tokens are reconstructed from the whole image
        ((DROPPED, "objectives.alignment_inputs=masked", "objectives.text=0"), 5, 2),
        (("objectives.itc=0", "objectives.itm=0", "objectives.text=0"), 17, 1),
        (("objectives.image=0", "objectives.text=0"), 17, 1),
        (("objectives.image=0", "objectives.text=0", "objectives.alignment_inputs=masked"), 17, 1),
    ],
)
def test_only_what_the_losses_use_is_encoded(
    tokenizer: PreTrainedTokenizerBase, overrides: tuple[str, ...], images: int, texts: int
) -> None:
    assert encoded_tokens(tokenizer, *overrides) == (8 * images, texts * int(make_batch().valid_BL.sum()))


def test_a_view_is_encoded_exactly_if_a_loss_depends_on_it(tokenizer: PreTrainedTokenizerBase) -> None:
    """For every fifth combination of options, which covers all pairs of values. The oracle checks the losses."""
    model, batch = build(tokenizer), make_batch()
    batch = dataclasses.replace(batch, masked_image_BCHW=batch.image_BCHW.clone())
    changed_views = {
        "image": (
            dataclasses.replace(batch, image_BCHW=batch.image_BCHW.flip(-1)),
            dataclasses.replace(batch, patch_mask_BN=batch.patch_mask_BN.roll(1, 0)),
        ),
        "text": (
            dataclasses.replace(batch, text_BL=batch.text_BL.flip(0)),
            dataclasses.replace(batch, masked_text_BL=batch.masked_text_BL.flip(0)),
        ),
    }
    options = itertools.product(*[(0.0, 1.0)] * 4, ("one", "both"), ("full", "masked"), ("other", "self"))
    for *weights, hide, inputs, source in itertools.islice(options, 0, None, 5):
        if any(weights) and (source == "other" or all(weights[:2]) or any(weights[2:])):
            by_name = dict(zip(("image", "text", "itc", "itm"), weights, strict=True))
            objectives = Objectives(**by_name, hide=hide, alignment_inputs=inputs, reconstruct_from=source, itm_group=4)
            model.objectives = objectives
            with torch.no_grad():
                losses = model(batch)
                for modality, batches in changed_views.items():
                    depends = tuple(model(changed) != losses for changed in batches)
                    assert depends == views_read(objectives, modality), (objectives, modality)
