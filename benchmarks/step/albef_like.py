"""A step like ALBEF's (Li et al., 2021, arXiv 2107.07651), without momentum and queue, on MaskVLM's layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvlm.batch import Batch, Encoded, Losses
from mvlm.model.losses.itm import NegativeSampler
from mvlm.model.maskvlm import MaskVLM


class AlbefLike(nn.Module):
    """ITC, ITM and masked words; only words read the other modality. Names and shapes as in mvlm/batch.py."""

    def __init__(self, model: MaskVLM) -> None:
        super().__init__()
        self.layers = model
        self.matched = nn.Linear(model.text.width, 2)
        for unused in (model.cross_image, model.image_decoder, model.match_head):
            unused.requires_grad_(False)

    def forward(self, batch: Batch) -> Losses:
        model, valid_BL = self.layers, batch.valid_BL
        image_BSD = model.encode_image(batch.image_BCHW)
        text_BLD, masked_text_BLD = (model.encode_text(x, valid_BL) for x in (batch.text_BL, batch.masked_text_BL))
        own = Encoded(
            model.project_image(image_BSD), model.project_text(text_BLD), batch.image_id_B, batch.caption_id_B
        )
        fused_BLD = model.fuse_text(masked_text_BLD, image_BSD, valid_BL)
        return {
            "itc": _contrastive_loss(own, model.temperature()),
            "itm": self._matching_loss(batch, own, image_BSD, text_BLD),
            "text": F.cross_entropy(model.reconstruct_text(fused_BLD).flatten(0, 1).float(), batch.target_BL.flatten()),
        }

    def _matching_loss(self, batch: Batch, own: Encoded, image_BSD: Tensor, text_BLD: Tensor) -> Tensor:
        model, valid_BL = self.layers, batch.valid_BL
        group = model.objectives.group(len(batch))
        image_idx_B, text_idx_B = NegativeSampler(group).draw(own, own, batch.position_B, model.temperature())
        images = torch.cat([image_BSD, image_BSD[image_idx_B], image_BSD])
        texts = torch.cat([text_BLD, text_BLD, text_BLD[text_idx_B]])
        valid = torch.cat([valid_BL, valid_BL, valid_BL[text_idx_B]])
        target = torch.zeros(len(texts), dtype=torch.int64, device=texts.device)
        target[: len(batch)] = 1
        return F.cross_entropy(self.matched(model.fuse_text(texts, images, valid)[:, 0]).float(), target)


def _contrastive_loss(pairs: Encoded, temperature: Tensor) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy among the batch's pairs, which are all different."""
    logits_BB = pairs.image_BE @ pairs.text_BE.T / temperature
    target_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2
