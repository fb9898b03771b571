"""MaskVLM (Kwon et al., ICLR 2023, arXiv 2208.02131): the method in one class. Shape legend: mvlm/batch.py."""

from __future__ import annotations

import torch
from torch import Tensor

from mvlm.batch import IGNORE, Batch, Contrast, Encoded, Losses, Pool, Tally
from mvlm.config.schema import Model, Objectives
from mvlm.model.encoders import Encoders
from mvlm.model.heads import ImageDecoder, MatchHead, Projection, Temperature, WordHead
from mvlm.model.losses.extra import chosen
from mvlm.model.losses.itc import contrast, itc_loss
from mvlm.model.losses.itm import counted_readings, hard_negatives, itm_loss, itm_right
from mvlm.model.losses.reconstruction import masked_image_loss, masked_text_loss
from mvlm.model.randomness import is_random
from mvlm.model.readings import Matching, Restoring
from mvlm.model.text import TextEncoder
from mvlm.model.views import Views
from mvlm.model.vision import VisionEncoder


class MaskVLM(Encoders):
    """The encoders, an image decoder and the heads.

    Args:
        seed: of the run, by which ITM's negatives are chosen.
    """

    def __init__(
        self, vision: VisionEncoder, text: TextEncoder, config: Model, objectives: Objectives, seed: int
    ) -> None:
        super().__init__(vision, text, config)
        self.objectives, self.seed = objectives, seed
        self.extra = chosen(objectives.extra)
        self.image_decoder = ImageDecoder(vision.width, text.width, vision.patch, vision.grid, config, vision.drops)
        self.word_head = WordHead(text.embedding, config.text_weights != "random", config)
        self.match_head = MatchHead(vision.width, text.width, config)
        self.image_projection = Projection(vision.width, config)
        self.text_projection = Projection(text.width, config)
        self.temperature = Temperature(config)

    def forward(self, batch: Batch, pool: Pool | None = None, tally: Tally | None = None) -> Losses:
        """The four losses of a micro-batch, and further ones; without a pool the micro-batch is the global batch.

        Args:
            tally: gets the accuracies `itm_accuracy` and `word_accuracy` and the value `temperature`.
        """
        weights = self.objectives
        pool = pool or self._pool_of_one(batch)
        image_BSD, text_BLD, hidden_image_BSD, hidden_text_BLD = self._encode(batch)
        aligned_image_BSD, aligned_text_BLD = image_BSD, text_BLD
        if weights.alignment_inputs == "masked":
            aligned_image_BSD, aligned_text_BLD = hidden_image_BSD, hidden_text_BLD
        context_image_BSD, context_text_BLD = image_BSD, text_BLD  # what a hidden modality is restored from
        if weights.hide == "both":
            context_image_BSD, context_text_BLD = hidden_image_BSD, hidden_text_BLD

        losses: Losses = {}
        image_matching = text_matching = image_restoring = text_restoring = None
        if weights.itc or weights.itm or self.extra:
            own = self._project(batch, aligned_image_BSD, aligned_text_BLD)
        if weights.itc:
            temperature = self.temperature()
            losses["itc"] = itc_loss(own, temperature, pool)
            if tally:
                tally.values["temperature"] = temperature.detach().squeeze()
        if weights.itm:
            image_idx_B, text_idx_B = self._draw_negatives(batch, own)
            image_matching = Matching(aligned_image_BSD, aligned_text_BLD, image_idx_B, text_idx_B)
            text_matching = Matching(aligned_text_BLD, aligned_image_BSD, text_idx_B, image_idx_B)
        if weights.image:
            image_restoring = Restoring(hidden_image_BSD, context_text_BLD)
        if weights.text:
            text_restoring = Restoring(hidden_text_BLD, context_image_BSD, batch.hidden.token_BC)

        if weights.image or weights.itm:
            fused_image_BSD, matched_image_B3D = self.cross_image.read_pairs(
                image_restoring, image_matching, context_valid_BU=batch.valid_BL
            )
        if weights.text or weights.itm:
            fused_text_BCD, matched_text_B3D = self.cross_text.read_pairs(text_restoring, text_matching, batch.valid_BL)
        if weights.itm:
            own_B1D, drawn_text_B1D, drawn_image_B1D = matched_text_B3D.split(1, dim=1)
            matched_text_B3D = torch.cat([own_B1D, drawn_image_B1D, drawn_text_B1D], dim=1)  # as the image side's
            logits_B32 = self.match_head(matched_image_B3D, matched_text_B3D)
            counted_B3 = self._counted_readings(batch)
            losses["itm"] = itm_loss(logits_B32, counted_B3, pool.itm_readings, pool.parts)
            if tally:
                tally.count("itm_accuracy", itm_right(logits_B32.detach()), counted_B3)
        if weights.text:
            losses["text"] = self._text_loss(batch, pool, fused_text_BCD, tally)
        if weights.image:
            losses["image"] = self._image_loss(batch, pool, fused_image_BSD, context_text_BLD)
        return losses | {name: objective(own) for name, objective in self.extra.items()}

    def project_image(self, image_BSD: Tensor) -> Tensor:
        """-> BE, unit length, fp32."""
        return self.image_projection(image_BSD)

    def project_text(self, text_BLD: Tensor) -> Tensor:
        """-> BE, unit length, fp32."""
        return self.text_projection(text_BLD)

    def reconstruct_image(self, fused_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor, patch_mask_BN: Tensor) -> Tensor:
        """-> BNQ, values of the normalised image, patches laid out as `patchify` does."""
        return self.image_decoder(fused_BSD, text_BLD, valid_BL, patch_mask_BN)

    def reconstruct_text(self, fused_BLD: Tensor) -> Tensor:
        """... x D -> ... x V, logits of the words."""
        return self.word_head(fused_BLD)

    def match(self, image_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """-> B2, logits of "no match" and "match"."""
        fused_image_BSD = self.fuse_image(image_BSD, text_BLD, valid_BL)
        fused_text_BLD = self.fuse_text(text_BLD, image_BSD, valid_BL)
        return self.match_head(fused_image_BSD[:, 0], fused_text_BLD[:, 0])

    def encode_pairs(self, batch: Batch) -> Encoded:
        """The contrastive features that `forward` computes for this micro-batch.

        Where dropout draws, they are the same ones from the same state of the random generator: the encoders are then
        given all that `forward` gives them, since what is drawn for a view depends on what goes with it.
        """
        masked = self.objectives.alignment_inputs == "masked"
        aligned = Views(whole=not masked, masked=masked)
        same = is_random(self.vision) or is_random(self.text)
        image_BSD, text_BLD, hidden_image_BSD, hidden_text_BLD = self._encode(batch, None if same else aligned)
        if masked:
            image_BSD, text_BLD = hidden_image_BSD, hidden_text_BLD
        return self._project(batch, image_BSD, text_BLD)

    def denominators(self, batch: Batch) -> Tensor:
        """Hidden tokens, hidden patches and readings of ITM that count, of this micro-batch -> int64, 3 of them."""
        tokens, patches = (batch.target_BL != IGNORE).sum(), batch.patch_mask_BN.sum()
        readings = self._counted_readings(batch).sum() if self.objectives.itm else torch.zeros_like(tokens)
        return torch.stack([tokens, patches, readings])

    def _counted_readings(self, batch: Batch) -> Tensor:
        weights = self.objectives
        return counted_readings(batch.image_id_B, batch.caption_id_B, weights.itm_group, weights.exclude_duplicates)

    def _pool_of_one(self, batch: Batch) -> Pool:
        """The micro-batch as its own global batch."""

        def alone(own: Encoded, temperature: Tensor) -> Contrast:
            return contrast([own], [0], temperature, self.objectives.exclude_duplicates)

        return Pool(alone, 0, 1, *self.denominators(batch))

    def _encode(self, batch: Batch, views: Views | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whole image, whole text, hidden image, hidden text; both of a modality in one pass of its encoder.

        Args:
            views: those to compute of either modality; None = those that the objectives read. In the place of one
                that is not computed stands the other.
        """
        image_views, text_views = (views or Views.read(self.objectives, name) for name in ("image", "text"))
        images = self.vision.views(batch, image_views)
        given = zip((batch.text_BL, batch.masked_text_BL), text_views, strict=True)
        texts = self.text(torch.stack([text for text, is_read in given if is_read]), batch.valid_BL, batch.packing)
        return images[0], texts[0], images[-1], texts[-1]

    def _project(self, batch: Batch, image_BSD: Tensor, text_BLD: Tensor) -> Encoded:
        image_BE, text_BE = self.project_image(image_BSD), self.project_text(text_BLD)
        return Encoded(image_BE, text_BE, batch.image_id_B, batch.caption_id_B)

    def _draw_negatives(self, batch: Batch, own: Encoded) -> tuple[Tensor, Tensor]:
        """A negative image for every text and a negative text for every image, as rows of the micro-batch."""
        weights = self.objectives
        return hard_negatives(
            own,
            batch.position_B,
            self.temperature(),
            weights.itm_group,
            self.seed,
            weights.exclude_duplicates,
            uniform=weights.itm_negatives == "uniform",
        )

    def _text_loss(self, batch: Batch, pool: Pool, fused_BCD: Tensor, tally: Tally | None) -> Tensor:
        hidden = batch.hidden
        target_M = batch.target_BL.gather(1, hidden.token_BC).flatten()[hidden.token_M]
        total = self.word_head(fused_BCD.flatten(0, 1)[hidden.token_M], target_M, tally)
        return masked_text_loss(total, pool.hidden_tokens, pool.parts)

    def _image_loss(self, batch: Batch, pool: Pool, fused_BSD: Tensor, text_BLD: Tensor) -> Tensor:
        hidden, vision = batch.hidden, self.vision
        pixels_BCQ = self.image_decoder(fused_BSD, text_BLD, batch.valid_BL, batch.patch_mask_BN, hidden.patch_BC)
        return masked_image_loss(
            pixels_BCQ.flatten(0, 1),
            batch.masked_image_BCHW,
            hidden.patch_M,
            vision.patch,
            vision.mean,
            vision.std,
            pool.hidden_patches,
            pool.parts,
            self.objectives.normalized_targets,
        )
