"""MaskVLM (Kwon et al., ICLR 2023, arXiv 2208.02131): the method in one class. Shape legend: mvlm/batch.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mvlm.batch import IGNORE, Batch, Contrast, Encoded, Losses, Pool
from mvlm.config import Config
from mvlm.model.cross import CrossEncoder
from mvlm.model.heads import ImageDecoder, MatchHead, Projection, Temperature, WordHead
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder
from mvlm.objectives.itc import contrast, itc_loss
from mvlm.objectives.itm import hard_negatives, itm_loss
from mvlm.objectives.mvlm import masked_image_loss, masked_text_loss


class MaskVLM(nn.Module):
    """Two encoders, two cross-modality encoders, an image decoder and the heads.

    Args:
        config: the run's configuration.
        tokenizer: gives the vocabulary of a text encoder built from nothing.
        load_weights: False leaves out the pretrained weights, for a model that a checkpoint fills.
    """

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, load_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        model = config.model
        self.vision = VisionEncoder(model, load_weights)
        self.text = TextEncoder(model, tokenizer, load_weights)
        image_width, text_width = self.vision.width, self.text.width
        self.cross_image = CrossEncoder(image_width, text_width, model.cross_depth, model)
        self.cross_text = CrossEncoder(text_width, image_width, model.cross_depth, model)
        self.image_decoder = ImageDecoder(image_width, text_width, self.vision.patch, model)
        self.word_head = WordHead(self.text.embedding, self.text.pretrained, model)
        self.match_head = MatchHead(image_width, text_width, model)
        self.image_projection = Projection(image_width, model)
        self.text_projection = Projection(text_width, model)
        self.temperature = Temperature(model)

    def forward(self, batch: Batch, pool: Pool | None = None) -> Losses:
        """The four losses of a micro-batch; without a pool the micro-batch is the global batch."""
        weights = self.config.objectives
        image_BSD, text_BLD, hidden_image_BSD, hidden_text_BLD = self._encode(batch)
        aligned_image_BSD, aligned_text_BLD = image_BSD, text_BLD
        if weights.alignment_inputs == "masked":
            aligned_image_BSD, aligned_text_BLD = hidden_image_BSD, hidden_text_BLD
        read_image_BSD, read_text_BLD = image_BSD, text_BLD  # what a hidden modality is restored from
        if weights.hide == "both":
            read_image_BSD, read_text_BLD = hidden_image_BSD, hidden_text_BLD

        losses: Losses = {}
        if weights.itc or weights.itm:
            own = self._project(batch, aligned_image_BSD, aligned_text_BLD)
        pool = pool or _pool_of_one(batch, weights.exclude_duplicates)
        if weights.itc:
            losses["itc"] = itc_loss(own, self.temperature(), pool)
        if weights.itm:
            losses["itm"] = self._match_loss(batch, own, aligned_image_BSD, aligned_text_BLD)
        if weights.text:
            fused_BLD = self.fuse_text(hidden_text_BLD, read_image_BSD, batch.valid_BL)
            hidden = batch.target_BL != IGNORE
            logits_MV = self.reconstruct_text(fused_BLD[hidden])
            losses["text"] = masked_text_loss(logits_MV, batch.target_BL[hidden], pool.hidden_tokens, pool.parts)
        if weights.image:
            fused_BSD = self.fuse_image(hidden_image_BSD, read_text_BLD, batch.valid_BL)
            pixels_BNQ = self.reconstruct_image(fused_BSD, read_text_BLD, batch.valid_BL)
            hidden_patch_M = batch.patch_mask_BN.flatten().nonzero().squeeze(1)
            losses["image"] = masked_image_loss(
                pixels_BNQ.flatten(0, 1)[hidden_patch_M],
                batch.masked_image_BCHW,
                hidden_patch_M,
                self.vision.patch,
                self.vision.mean,
                self.vision.std,
                pool.hidden_patches,
                pool.parts,
                weights.normalized_targets,
            )
        return losses

    def encode_image(self, image_BCHW: Tensor, patch_mask_BN: Tensor | None = None) -> Tensor:
        """uint8 images, hidden patches True -> BSD."""
        return self.vision(image_BCHW, patch_mask_BN)

    def encode_text(self, text_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """Token ids -> BLD."""
        return self.text(text_BL, valid_BL)

    def project_image(self, image_BSD: Tensor) -> Tensor:
        """-> BE, unit length, fp32."""
        return self.image_projection(image_BSD)

    def project_text(self, text_BLD: Tensor) -> Tensor:
        """-> BE, unit length, fp32."""
        return self.text_projection(text_BLD)

    def fuse_image(self, queries_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Image tokens that have read the text -> BSD."""
        return self.cross_image(queries_BSD, text_BLD, context_valid_BT=valid_BL)

    def fuse_text(self, queries_BLD: Tensor, image_BSD: Tensor, valid_BL: Tensor) -> Tensor:
        """Text tokens that have read the image -> BLD."""
        return self.cross_text(queries_BLD, image_BSD, valid_BL=valid_BL)

    def reconstruct_image(self, fused_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """-> BNQ, values of the normalised image, patches laid out as `patchify` does."""
        return self.image_decoder(fused_BSD, text_BLD, valid_BL)

    def reconstruct_text(self, fused_BLD: Tensor) -> Tensor:
        """... x D -> ... x V, logits of the words."""
        return self.word_head(fused_BLD)

    def match(self, image_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """-> B2, logits of "no match" and "match"."""
        fused_image_BSD = self.fuse_image(image_BSD, text_BLD, valid_BL)
        return self.match_head(fused_image_BSD, self.fuse_text(text_BLD, image_BSD, valid_BL))

    def encode_pairs(self, batch: Batch) -> Encoded:
        """The contrastive features that `forward` computes for this micro-batch."""
        if self.config.objectives.alignment_inputs == "masked":
            image_BSD = self.encode_image(batch.masked_image_BCHW, batch.patch_mask_BN)
            return self._project(batch, image_BSD, self.encode_text(batch.masked_text_BL, batch.valid_BL))
        return self._project(
            batch, self.encode_image(batch.image_BCHW), self.encode_text(batch.text_BL, batch.valid_BL)
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.vision.grid

    def normalize(self, image_BCHW: Tensor) -> Tensor:
        return self.vision.normalize(image_BCHW)

    def patchify(self, image_BCHW: Tensor) -> Tensor:
        return self.vision.patchify(image_BCHW)

    def unpatchify(self, patches_BNQ: Tensor) -> Tensor:
        return self.vision.unpatchify(patches_BNQ)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whole image, whole text, hidden image, hidden text; both of a modality in one pass of its encoder."""
        weights = self.config.objectives
        if not (weights.image or weights.text or weights.alignment_inputs == "masked"):
            image_BSD = self.encode_image(batch.image_BCHW)
            text_BLD = self.encode_text(batch.text_BL, batch.valid_BL)
            return image_BSD, text_BLD, image_BSD, text_BLD
        images = torch.cat([batch.image_BCHW, batch.masked_image_BCHW])
        masks = torch.cat([torch.zeros_like(batch.patch_mask_BN), batch.patch_mask_BN])
        texts, valid = torch.cat([batch.text_BL, batch.masked_text_BL]), batch.valid_BL.repeat(2, 1)
        image_BSD, hidden_image_BSD = self.encode_image(images, masks).chunk(2)
        text_BLD, hidden_text_BLD = self.encode_text(texts, valid).chunk(2)
        return image_BSD, text_BLD, hidden_image_BSD, hidden_text_BLD

    def _project(self, batch: Batch, image_BSD: Tensor, text_BLD: Tensor) -> Encoded:
        image_BE, text_BE = self.project_image(image_BSD), self.project_text(text_BLD)
        return Encoded(image_BE, text_BE, batch.image_id_B, batch.caption_id_B)

    def _match_loss(self, batch: Batch, own: Encoded, image_BSD: Tensor, text_BLD: Tensor) -> Tensor:
        """Every pair, every text with a negative image and every image with a negative text, in one pass."""
        weights, seed = self.config.objectives, self.config.run.seed
        image_idx_B, text_idx_B = hard_negatives(
            own,
            batch.position_B,
            self.temperature(),
            weights.itm_group,
            seed,
            weights.exclude_duplicates,
            uniform=weights.itm_negatives == "uniform",
        )
        images = torch.cat([image_BSD, image_BSD[image_idx_B], image_BSD])
        texts = torch.cat([text_BLD, text_BLD, text_BLD[text_idx_B]])
        valid = torch.cat([batch.valid_BL, batch.valid_BL, batch.valid_BL[text_idx_B]])
        logits_X2 = self.match(images, texts, valid)
        return itm_loss(logits_X2.unflatten(0, (3, len(batch))).transpose(0, 1))


def _pool_of_one(batch: Batch, exclude_duplicates: bool) -> Pool:
    """The micro-batch as its own global batch."""

    def alone(own: Encoded, temperature: Tensor) -> Contrast:
        return contrast([own], [0], temperature, exclude_duplicates)

    tokens, patches = (batch.target_BL != IGNORE).sum(), batch.patch_mask_BN.sum()
    return Pool(alone, start=0, parts=1, hidden_tokens=tokens, hidden_patches=patches)
