"""MaskVLM's training step written plainly: padded text, every reading computed by itself, heads at every position.

It shares the layers of `mvlm.model`, so the parameters are exactly the same ones, and its losses and gradients are
those of `MaskVLM.forward`. Names and shapes as in mvlm/batch.py; all pairs of the batch must be different.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import IGNORE, Batch, Encoded, Losses
from mvlm.model.losses.itm import hard_negatives
from mvlm.model.maskvlm import MaskVLM


def naive_losses(model: MaskVLM, batch: Batch, padding: int = 0, packed: bool = False, masked: bool = False) -> Losses:
    """The four losses of a micro-batch.

    Args:
        padding: tokens to which the text is padded; 0 = as it comes in the batch.
        packed: the text encoder computes no padding.
        masked: words and pixels are predicted only where they are hidden.
    """
    extra = max(0, padding - batch.text_BL.shape[1])
    valid_BL = F.pad(batch.valid_BL, (0, extra))
    target_BL = F.pad(batch.target_BL, (0, extra), value=IGNORE)

    def encode_text(text_BL: Tensor) -> Tensor:
        if packed:
            return F.pad(model.text(text_BL, batch.valid_BL, batch.packing), (0, 0, 0, extra))
        text_BL = F.pad(text_BL, (0, extra), value=model.text.settings.pad_token_id)
        return model.text.model(input_ids=text_BL, attention_mask=valid_BL.long()).last_hidden_state

    image_BSD = model.encode_image(batch.image_BCHW)
    hidden_image_BSD = model.encode_image(batch.masked_image_BCHW, batch.patch_mask_BN)
    text_BLD, hidden_text_BLD = encode_text(batch.text_BL), encode_text(batch.masked_text_BL)

    own = Encoded(model.project_image(image_BSD), model.project_text(text_BLD), batch.image_id_B, batch.caption_id_B)
    fused_BLD = model.fuse_text(hidden_text_BLD, image_BSD, valid_BL)
    fused_BSD = model.fuse_image(hidden_image_BSD, text_BLD, valid_BL)
    pixels_BNQ = _pixels(model, fused_BSD, text_BLD, valid_BL, batch.patch_mask_BN if masked else None)
    return {
        "itc": contrastive_loss(own, model.temperature()),
        "itm": _matching_loss(model, batch, own, image_BSD, text_BLD, valid_BL),
        "text": word_loss(model, fused_BLD, target_BL, masked),
        "image": _pixel_loss(model, batch, pixels_BNQ),
    }


def contrastive_loss(pairs: Encoded, temperature: Tensor) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy among the batch's pairs."""
    logits_BB = pairs.image_BE @ pairs.text_BE.T / temperature
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


def word_loss(model: MaskVLM, fused_BLD: Tensor, target_BL: Tensor, masked: bool) -> Tensor:
    """Cross-entropy of the hidden words, whose logits are computed for them alone where `masked`."""
    hidden_BL = target_BL != IGNORE
    if masked:
        return F.cross_entropy(model.reconstruct_text(fused_BLD[hidden_BL]).float(), target_BL[hidden_BL])
    return F.cross_entropy(model.reconstruct_text(fused_BLD).flatten(0, 1).float(), target_BL.flatten())


def _matching_loss(
    model: MaskVLM, batch: Batch, own: Encoded, image_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor
) -> Tensor:
    group, seed = model.objectives.itm_group, model.seed
    image_idx_B, text_idx_B = hard_negatives(own, batch.position_B, model.temperature(), group, seed, True)
    readings = [
        (image_BSD, text_BLD, valid_BL),
        (image_BSD[image_idx_B], text_BLD, valid_BL),
        (image_BSD, text_BLD[text_idx_B], valid_BL[text_idx_B]),
    ]
    logits_3B2 = torch.cat([model.match(*reading) for reading in readings])
    target_3B = torch.zeros(len(logits_3B2), dtype=torch.int64, device=logits_3B2.device)
    target_3B[: len(batch)] = 1
    return F.cross_entropy(logits_3B2, target_3B)


def _pixels(
    model: MaskVLM, fused_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor, patch_mask_BN: Tensor | None
) -> Tensor:
    """BNQ; where a mask is given, patches that are not hidden are left at zero."""
    decoder = model.image_decoder
    decoded_BND = decoder.blocks(fused_BSD, text_BLD, context_valid_BT=valid_BL)[:, 1:]
    if patch_mask_BN is None:
        return decoder.pixels(decoded_BND)
    pixels_BNQ = decoded_BND.new_zeros(*patch_mask_BN.shape, decoder.pixels.out_features)
    return pixels_BNQ.masked_scatter(patch_mask_BN[..., None], decoder.pixels(decoded_BND[patch_mask_BN]))


def _pixel_loss(model: MaskVLM, batch: Batch, pixels_BNQ: Tensor) -> Tensor:
    hidden_BN = batch.patch_mask_BN
    target_BNQ = model.patchify(model.normalize(batch.masked_image_BCHW))
    return F.l1_loss(pixels_BNQ[hidden_BN].float(), target_BNQ[hidden_BN])
