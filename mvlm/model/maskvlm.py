"""MaskVLM (Kwon et al., ICLR 2023, arXiv 2208.02131): the method in one class. Shape legend: mvlm/batch.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mvlm.batch import IGNORE, Batch, Counts, Encoded, GlobalBatch, ItcGradients, Losses, MetricAccumulator
from mvlm.config.schema import Model, Objectives
from mvlm.kernels.fusion import FUSION, MatchStream, Stream
from mvlm.kernels.views import VIEWS, Views
from mvlm.model.encoders import Encoders
from mvlm.model.heads import (
    ContrastiveBias,
    ImageDecoder,
    MatchHead,
    MlmHead,
    Projection,
    SigmoidTemperature,
    Temperature,
)
from mvlm.model.inputs import Encodings, aligns, select, views_read
from mvlm.model.losses.extra import chosen
from mvlm.model.losses.itc import begin_contrast, itc_loss
from mvlm.model.losses.itm import NegativeSampler, ids_of, itm_loss
from mvlm.model.losses.mim import mim_loss
from mvlm.model.losses.mlm import mlm_loss
from mvlm.model.randomness import is_random
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder


class MaskVLM(Encoders):
    """The encoders, an image decoder and the heads.

    Kernels encode views and fuse streams (mvlm/kernels/views.py, fusion.py) either one after another, as written, or at
    once and without what nobody reads; the losses and their gradients are the same.

    Args:
        seed: the run's, by which ITM's negatives are chosen.
        text_length: the most tokens in a text.
    """

    def __init__(
        self,
        vision: VisionEncoder,
        text: TextEncoder,
        config: Model,
        objectives: Objectives,
        seed: int,
        text_length: int,
    ) -> None:
        super().__init__(vision, text, config)
        self.objectives, self.seed, self.text_length = objectives, seed, text_length
        self.extra = chosen(objectives.extra)
        self.image_decoder = ImageDecoder(vision.width, text.width, vision.patch, vision.grid, config, vision.drops)
        self.mlm_head = MlmHead(text.width, text.embedding, config.text_weights != "random", config)
        self.match_head = MatchHead(vision.width, text.width, config)
        self.image_projection = Projection(vision.width, config)
        self.text_projection = Projection(text.width, config)
        sigmoid = objectives.contrastive == "sigmoid"
        self.temperature = SigmoidTemperature() if sigmoid else Temperature(config)
        self.contrastive_bias = ContrastiveBias() if sigmoid else None

    def forward(
        self, batch: Batch, global_batch: GlobalBatch | None = None, metrics: MetricAccumulator | None = None
    ) -> Losses:
        """The losses of a micro-batch, without those of weight 0; alone, the micro-batch is the global batch.

        Args:
            metrics: gets the accuracies `itm_accuracy` and `word_accuracy` and the value `temperature`; with the
                sigmoid, `contrastive_bias` too.
        """
        weights, global_batch = self.objectives, global_batch or self.alone(batch)
        whole, masked, projected = self.encode(batch)
        aligned, masked_image, masked_text = select(weights, whole, masked, batch.masked)

        # Contrast images with texts, and choose for each a negative to tell it from.
        image_match = text_match = None
        if projected:
            features = Encoded(*projected, batch.image_id_B, batch.caption_id_B)
        if weights.itc:
            scale = self.contrastive_scale()
            contrast = global_batch.contrast(features, *scale)
        if aligned and weights.itm:
            image_match, text_match = self._match_streams(aligned, features, global_batch)

        # Match pairs, and reconstruct each masked modality from the other.
        images, texts = (masked_image, image_match), (masked_text, text_match)
        fused, counted = self.fuse(batch, images, texts, global_batch.counts, metrics is not None)
        if metrics:
            metrics.add(counted)
        losses: Losses = {}
        if weights.itc:  # last, when all ranks' features have had time to arrive
            losses["itc"] = itc_loss(features, *scale, contrast(), global_batch.counts.parts, metrics)
        return losses | fused | {name: objective(features) for name, objective in self.extra.items()}

    def fuse(
        self,
        batch: Batch,
        images: tuple[Stream | None, MatchStream | None],
        texts: tuple[Stream | None, MatchStream | None],
        counts: Counts,
        measured: bool,
    ) -> tuple[Losses, MetricAccumulator]:
        """The losses of what reads both modalities, and their accuracies if they are to be measured.

        Args:
            images, texts: what is to be reconstructed, and what is to be matched.
        """
        (masked_image, image_match), (masked_text, text_match) = images, texts
        losses: Losses = {}
        found = MetricAccumulator()
        metrics = found if measured else None
        fused_image_BSD, image_cls_B3D = FUSION(self.cross_image, masked_image, image_match, None, batch.valid_BL)
        fused_text_BCD, text_cls_B3D = FUSION(self.cross_text, masked_text, text_match, batch.valid_BL)
        if image_match:
            losses["itm"] = self._itm_loss(image_cls_B3D, text_cls_B3D, counts, metrics)
        if masked_text:
            losses["text"] = self._mlm_loss(batch, fused_text_BCD, counts, metrics)
        if masked_image:
            losses["image"] = self._mim_loss(batch, fused_image_BSD, masked_image.context_BUD, counts)
        return losses, found

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
        return self.mlm_head(fused_BLD)

    def contrastive_scale(self) -> tuple[Tensor, Tensor | None]:
        """ITC's temperature, by which similarities are divided, and the sigmoid's bias."""
        return self.temperature(), self.contrastive_bias() if self.contrastive_bias else None

    def match(self, image_BSD: Tensor, text_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """-> B2, logits of "no match" and "match"."""
        fused_image_BSD = self.fuse_image(image_BSD, text_BLD, valid_BL)
        fused_text_BLD = self.fuse_text(text_BLD, image_BSD, valid_BL)
        return self.match_head(fused_image_BSD[:, 0], fused_text_BLD[:, 0])

    def encode_pairs(self, batch: Batch) -> tuple[Encoded, Encodings]:
        """The contrastive features that `forward` computes for this micro-batch, and the encodings they come from.

        With dropout, they are the same from the same state of the random generator: the encoders are then given all
        that `forward` gives them, since a view's random numbers depend on what is encoded with it.
        """
        masked = self.objectives.alignment_inputs == "masked"
        aligned = Views(whole=not masked, masked=masked)
        same = is_random(self.vision) or is_random(self.text)
        *encodings, projected = self.encode(batch, None if same else aligned)
        assert projected  # otherwise nobody would call this
        return Encoded(*projected, batch.image_id_B, batch.caption_id_B), encodings[masked]

    def sampler(self, pairs: int) -> NegativeSampler:
        """The sampler of ITM's negatives in a global batch of so many pairs."""
        weights = self.objectives
        group, uniform = weights.group(pairs), weights.itm_negatives == "uniform"
        return NegativeSampler(group, self.seed, weights.exclude_duplicates, uniform)

    def alone(self, batch: Batch) -> GlobalBatch:
        """The micro-batch as its own global batch."""

        def contrast(own: Encoded, temperature: Tensor, bias: Tensor | None) -> Callable[[], ItcGradients]:
            return begin_contrast(own, temperature, bias, self.objectives.exclude_duplicates)

        sampler = self.sampler(len(batch))
        counted_B3 = sampler.counted(ids_of(batch), len(batch))
        return GlobalBatch(contrast, sampler.within(batch), Counts(1, counted_B3, *denominators(batch, counted_B3)))

    def encode(
        self, batch: Batch, views: Views | None = None
    ) -> tuple[Encodings, Encodings, tuple[Tensor, Tensor] | None]:
        """The whole view of both modalities, the masked one, and the contrastive features image_BE and text_BE, None
        if no objective reads them.

        Args:
            views: those to compute of either modality; None = those that the objectives read. The other takes the
                place of one that is not computed.
        """
        image_views, text_views = (views or views_read(self.objectives, name) for name in ("image", "text"))
        images = VIEWS(partial(self.vision.views, batch), image_views)
        texts = VIEWS(partial(self._encode_texts, batch), text_views)
        whole, masked = Encodings(images[0], texts[0]), Encodings(images[-1], texts[-1])
        if not aligns(self.objectives):
            return whole, masked, None
        image_BSD, text_BLD = masked if self.objectives.alignment_inputs == "masked" else whole
        return whole, masked, (self.project_image(image_BSD), self.project_text(text_BLD))

    def _encode_texts(self, batch: Batch, views: Views) -> list[Tensor]:
        given = zip((batch.text_BL, batch.masked_text_BL), views, strict=True)
        text_XBL = torch.stack([text_BL for text_BL, is_read in given if is_read])
        return list(self.text(text_XBL, batch.valid_BL, batch.packing))

    def _match_streams(
        self, views: Encodings, features: Encoded, global_batch: GlobalBatch
    ) -> tuple[MatchStream, MatchStream]:
        """The streams of the image side and the text side: each pair, with a negative image and a negative text."""
        image_BSD, text_BLD = views
        image, text = global_batch.negatives(features, self.temperature(), image_BSD, text_BLD)
        return MatchStream(image_BSD, text_BLD, image, text), MatchStream(text_BLD, image_BSD, text, image)

    def _itm_loss(
        self, image_B3D: Tensor, text_B3D: Tensor, counts: Counts, metrics: MetricAccumulator | None
    ) -> Tensor:
        own_B1D, negative_text_B1D, negative_image_B1D = text_B3D.split(1, dim=1)
        text_B3D = torch.cat([own_B1D, negative_image_B1D, negative_text_B1D], dim=1)  # in the image side's order
        logits_B32 = self.match_head(image_B3D, text_B3D)
        return itm_loss(logits_B32, counts.counted_B3, counts.itm_examples, counts.parts, metrics)

    def _mlm_loss(self, batch: Batch, fused_BCD: Tensor, counts: Counts, metrics: MetricAccumulator | None) -> Tensor:
        masked = batch.masked
        target_M = batch.target_BL.gather(1, masked.token_BC).flatten()[masked.token_M]
        logits_MV = self.mlm_head(fused_BCD.flatten(0, 1)[masked.token_M])
        return mlm_loss(logits_MV, target_M, counts.masked_tokens, counts.parts, metrics)

    def _mim_loss(self, batch: Batch, fused_BSD: Tensor, text_BLD: Tensor, counts: Counts) -> Tensor:
        masked, vision = batch.masked, self.vision
        pixels_BCQ = self.image_decoder(fused_BSD, text_BLD, batch.valid_BL, batch.patch_mask_BN, masked.patch_BC)
        return mim_loss(
            pixels_BCQ.flatten(0, 1),
            batch.masked_image_BCHW,
            masked.patch_M,
            vision.patch,
            vision.mean,
            vision.std,
            counts.masked_patches,
            counts.parts,
            self.objectives.normalized_targets,
        )


def denominators(batch: Batch, counted_B3: Tensor) -> Tensor:
    """How many masked tokens, masked patches and counted ITM examples a micro-batch has -> int64 [3]."""
    return torch.stack([(batch.target_BL != IGNORE).sum(), batch.patch_mask_BN.sum(), counted_B3.sum()])
