"""The model with the interface that users of transformers expect. Shape legend: mvlm/batch.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import copy_, no_init_weights
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from mvlm.config.parameters import RENAMED
from mvlm.export.configuration import MaskVLMConfig, MaskVLMTaskConfig
from mvlm.model.encoders import Encoders
from mvlm.model.finetune import LOSSES, TaskModel
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import Vocabulary, build_model


@dataclass
class MaskVLMOutput(ModelOutput):
    """How well images and sentences match.

    Attributes:
        loss: contrastive, within the batch, if requested.
        logits_per_image, logits_per_text: cosine over temperature, image x text and text x image; plus the bias if the
            model was trained with the sigmoid loss, so that their sigmoid is the probability of a match.
        image_embeds, text_embeds: unit vectors BE.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


def build_network(config: MaskVLMConfig, classes: int = 0) -> Encoders:
    return build_model(config.blueprint(), Vocabulary(config.vocabulary, config.pad_token_id), classes)


class MaskVLMPreTrainedModel(PreTrainedModel):
    config_class = MaskVLMConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    _no_split_modules = ["CrossBlock"]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """Also loads folders that earlier versions exported with other names for some parameters."""
        names = {rf"^network\.{old}\.": f"network.{new}." for table in RENAMED.values() for old, new in table.items()}
        return super().from_pretrained(*args, **{"key_mapping": names} | options)

    @classmethod
    def get_init_context(cls, *args: Any, **options: Any) -> list[Any]:
        """Build on the CPU without initialising weights: the meta device would lose buffers such as positions."""
        contexts = super().get_init_context(*args, **options)
        return [*(each for each in contexts if not isinstance(each, torch.device)), no_init_weights()]

    def _init_weights(self, module: Any) -> None:
        """The network has initialised its weights; buffers such as positions, emptied by transformers, are restored."""
        for name, computed in self._computed.get(module, {}).items():
            copy_(getattr(module, name), computed)

    def _tie_and_finish(self) -> None:
        """Tell transformers which names share a weight; files hold it under the first of them."""
        self._computed = {each: dict(each.named_buffers(recurse=False)) for each in self.modules() if each._buffers}
        first: dict[int, str] = {}
        self._tied_weights_keys = {
            name: first[id(weight)]
            for name, weight in self.named_parameters(remove_duplicate=False)
            if first.setdefault(id(weight), name) != name
        }
        self.post_init()


class MaskVLMModel(MaskVLMPreTrainedModel):
    """A model for pretraining or retrieval, which compares images with sentences and reconstructs masked parts.

    Images are uint8 BCHW as the processor gives them; they are normalised within.
    """

    def __init__(self, config: MaskVLMConfig) -> None:
        super().__init__(config)
        self.network = cast(MaskVLM, build_network(config))
        self._tie_and_finish()

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, return_loss: bool = False
    ) -> MaskVLMOutput:
        """Compare every image with every sentence, by ITC.

        Args:
            pixel_values: uint8 [images, 3, H, W].
            input_ids, attention_mask: [sentences, L].
            return_loss: also compute the contrastive loss, in which image i belongs to sentence i.
        """
        image_AE = self.get_image_features(pixel_values)
        text_TE = self.get_text_features(input_ids, attention_mask)
        temperature, bias = self.network.contrastive_scale()
        logits_AT = image_AE @ text_TE.T / temperature + (0.0 if bias is None else bias)
        loss = None
        if return_loss:
            loss = _softmax_loss(logits_AT) if bias is None else _sigmoid_loss(logits_AT)
        return MaskVLMOutput(loss, logits_AT, logits_AT.T, image_AE, text_TE)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """-> BE, unit length."""
        return self.network.project_image(self.network.encode_image(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """-> BE, unit length."""
        return self.network.project_text(self.network.encode_text(input_ids, attention_mask.bool()))

    def match(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Image i with sentence i -> B2, ITM's logits of "no match" and "match"."""
        image_BSD, text_BLD, valid_BL = self._encode(pixel_values, input_ids, attention_mask)
        return self.network.match(image_BSD, text_BLD, valid_BL)

    def restore_words(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """-> BLV, logits for every token; mask some with the tokenizer's mask token."""
        image_BSD, text_BLD, valid_BL = self._encode(pixel_values, input_ids, attention_mask)
        return self.network.reconstruct_text(self.network.fuse_text(text_BLD, image_BSD, valid_BL))

    def restore_patches(
        self, pixel_values: Tensor, hidden_patches: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """-> BCHW in the space of training (the normalised image, unless objectives.normalized_targets), in which the
        `hidden_patches` (bool BN, True = masked) are the reconstruction."""
        network, valid_BL = self.network, attention_mask.bool()
        image_BSD = network.encode_image(pixel_values, hidden_patches)
        text_BLD = network.encode_text(input_ids, valid_BL)
        fused_BSD = network.fuse_image(image_BSD, text_BLD, valid_BL)
        patches_BNQ = network.reconstruct_image(fused_BSD, text_BLD, valid_BL, hidden_patches)
        return network.unpatchify(patches_BNQ)

    def _encode(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        valid_BL = attention_mask.bool()
        return self.network.encode_image(pixel_values), self.network.encode_text(input_ids, valid_BL), valid_BL


def _softmax_loss(logits_BB: Tensor) -> Tensor:
    right = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, right) + F.cross_entropy(logits_BB.T, right)) / 2


def _sigmoid_loss(logits_BB: Tensor) -> Tensor:
    right = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
    return F.softplus(torch.where(right, -logits_BB, logits_BB)).sum(1).mean()


class MaskVLMForImageTextClassification(MaskVLMPreTrainedModel):
    """A model fine-tuned for VQA, NLVR2 or visual entailment."""

    config_class = MaskVLMTaskConfig  # type: ignore[assignment]

    def __init__(self, config: MaskVLMTaskConfig) -> None:
        super().__init__(config)
        self.network = cast(TaskModel, build_network(config, len(config.id2label or ())))
        self._tie_and_finish()

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """-> `logits` BA.

        Args:
            pixel_values: uint8 BCHW; for NLVR2 [B, 2, C, H, W], the left image first.
            labels: int64 B; for VQA float BA, a score for each answer.
        """
        image_BVCHW = pixel_values if pixel_values.ndim == 5 else pixel_values[:, None]
        logits_BA = self.network.logits(image_BVCHW.transpose(0, 1), input_ids, attention_mask.bool())
        loss = None if labels is None else LOSSES[self.network.task.name](logits_BA, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits_BA)
