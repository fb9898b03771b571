"""MaskVLM's losses written as METHOD says, one pair at a time, sharing only layers with `forward`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from mvlm.batch import IGNORE, Batch
from mvlm.model.maskvlm import MaskVLM


def reference_losses(
    model: MaskVLM, batch: Batch, image_idx: list[int], text_idx: list[int], right: dict[str, list[bool]] | None = None
) -> dict[str, torch.Tensor]:
    """The four losses; the negatives are given, for their draw is tested by itself.

    Args:
        right: gets which words and matches the model would tell rightly.
    """
    right = right if right is not None else {}
    pairs = range(len(batch))
    hide = model.config.objectives.hide

    def image(i: int, hidden: bool = False) -> torch.Tensor:
        mask = batch.patch_mask_BN[i : i + 1] if hidden else None
        return model.encode_image((batch.masked_image_BCHW if hidden else batch.image_BCHW)[i : i + 1], mask)

    def text(i: int, hidden: bool = False) -> torch.Tensor:  # without its padding
        length = int(batch.valid_BL[i].sum())
        ids = (batch.masked_text_BL if hidden else batch.text_BL)[i : i + 1, :length]
        return model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))

    def valid(tokens: torch.Tensor) -> torch.Tensor:
        return torch.ones(tokens.shape[:2], dtype=torch.bool)

    word_losses, pixel_errors = [], []
    for i in pairs:
        other_image, other_text = image(i, hide == "both"), text(i, hide == "both")
        words = model.reconstruct_text(model.fuse_text(text(i, True), other_image, valid(other_text)))[0]
        for place, word in enumerate(batch.target_BL[i].tolist()):
            if word != IGNORE:
                word_losses.append(-F.log_softmax(words[place], -1)[word])
                right.setdefault("word_accuracy", []).append(int(words[place].argmax()) == word)
        fused = model.fuse_image(image(i, True), other_text, valid(other_text))
        mask = batch.patch_mask_BN[i : i + 1]
        pixels = model.unpatchify(model.reconstruct_image(fused, other_text, valid(other_text), mask))[0]
        truth = model.normalize(batch.masked_image_BCHW[i : i + 1])[0].to(pixels.dtype)
        side = model.vision.patch
        for patch in batch.patch_mask_BN[i].nonzero().flatten().tolist():
            row, column = divmod(patch, model.grid[1])
            area = (slice(None), slice(row * side, row * side + side), slice(column * side, column * side + side))
            pixel_errors.append((pixels[area] - truth[area]).abs().flatten())

    def aligned(encode: Callable[[int, bool], torch.Tensor], i: int) -> torch.Tensor:
        return encode(i, model.config.objectives.alignment_inputs == "masked")

    image_E = torch.cat([F.normalize(model.image_projection.linear(aligned(image, i)[:, 0]), dim=-1) for i in pairs])
    text_E = torch.cat([F.normalize(model.text_projection.linear(aligned(text, i)[:, 0]), dim=-1) for i in pairs])
    logits = image_E @ text_E.T / model.temperature.value
    itc = -(F.log_softmax(logits, 1).diagonal().mean() + F.log_softmax(logits, 0).diagonal().mean()) / 2

    trios = [(i, i, 1) for i in pairs] + [(image_idx[i], i, 0) for i in pairs] + [(i, text_idx[i], 0) for i in pairs]
    matches = []
    for i, t, label in trios:
        words, picture = aligned(text, t), aligned(image, i)
        fused_image = model.fuse_image(picture, words, valid(words))[:, 0]
        fused_text = model.fuse_text(words, picture, valid(words))[:, 0]
        logits_2 = model.match_head.classifier(fused_image * model.match_head.align(fused_text))[0]
        matches.append(-F.log_softmax(logits_2, -1)[label])
        right.setdefault("itm_accuracy", []).append(int(logits_2.argmax()) == label)
    return {
        "itc": itc,
        "itm": torch.stack(matches).mean(),
        "text": torch.stack(word_losses).mean(),
        "image": torch.cat(pixel_errors).mean(),
    }
