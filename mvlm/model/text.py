"""Text encoder: any BERT-like transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import sdpa_mask
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mvlm.batch import Packing
from mvlm.config.schema import Model
from mvlm.errors import UserError
from mvlm.kernels.attention import attention
from mvlm.kernels.packed_attention import PACKED_ATTENTION, Packed
from mvlm.model.filling import Filled, fill, fit_text_positions
from mvlm.model.foreign import described_kind, read_tensors
from mvlm.model.names import Foreign, text_encoder
from mvlm.runtime import hub

PACKABLE = {
    "albert": 0,
    "bert": 0,
    "camembert": 1,
    "data2vec-text": 1,
    "distilbert": 0,
    "electra": 0,
    "ernie": 0,
    "roberta": 1,
    "roberta-prelayernorm": 1,
    "xlm-roberta": 1,
    "xlm-roberta-xl": 1,
}
"""Encoders that know of a token's neighbours through plain attention alone: 1 where the positions of a text begin
behind the padding token's number and 0 where they begin at 0. Texts go through them without padding."""


class TextEncoder(nn.Module):
    """Token ids to token features; the first token is the sentence's CLS.

    Attributes:
        filled: what became of the weights it started from; None = random ones, or a checkpoint's that fills it later.
    """

    def __init__(self, config: Model, tokenizer: PreTrainedTokenizerBase, load_weights: bool) -> None:
        super().__init__()
        self.pretrained = load_weights and config.text_weights != "random"
        self.model: Any = _create(config, describe(config, tokenizer))
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # would get no gradient
        self.settings: PretrainedConfig = self.model.config
        self.filled: Filled | None = _fill(self.model, config) if self.pretrained else None
        self.width: int = self.settings.hidden_size
        self.embedding: nn.Embedding = self.model.get_input_embeddings()
        if self.embedding.num_embeddings < len(tokenizer):
            raise UserError(
                f"The tokenizer has {len(tokenizer)} tokens and model.text {config.text!r} only "
                f"{self.embedding.num_embeddings}: set data.tokenizer to the encoder's own."
            )
        self.packable = self.settings.model_type in PACKABLE
        self.first_position = _first_position(self.settings)
        if self.packable:
            self.settings._attn_implementation = _OURS  # for good: blocks are also run again outside of `forward`

    def forward(self, text_BL: Tensor, valid_BL: Tensor, packing: Packing | None = None) -> Tensor:
        """int64 BL, bool BL (False = padding) -> BLD. Several texts of the same lengths: XBL -> XBLD.

        Args:
            packing: of `valid_BL`; with it no padding is computed, and its features are 0.
        """
        texts_XBL = text_BL if text_BL.ndim == 3 else text_BL[None]
        if packing is not None and self.packable:
            tokens_XBLD = self._packed(texts_XBL, valid_BL, packing)
        else:
            mask = valid_BL.long().repeat(len(texts_XBL), 1)
            tokens = self.model(input_ids=texts_XBL.flatten(0, 1), attention_mask=mask).last_hidden_state
            tokens_XBLD = tokens.unflatten(0, texts_XBL.shape[:2])
        return tokens_XBLD if text_BL.ndim == 3 else tokens_XBLD[0]

    def _packed(self, texts_XBL: Tensor, valid_BL: Tensor, packing: Packing) -> Tensor:
        copies, tokens = len(texts_XBL), len(packing.token_T)
        starts = [packing.starts[1:] + copy * tokens for copy in range(copies)]
        packed = Packed(packing.token_T, torch.cat([packing.starts[:1], *starts]), valid_BL, copies)
        position_T = (packing.token_T % valid_BL.shape[1] + self.first_position).repeat(copies)
        output = self.model(input_ids=packed.pack(texts_XBL).view(1, -1), position_ids=position_T[None], packed=packed)
        return packed.unpack(output.last_hidden_state[0]).unflatten(0, texts_XBL.shape[:2])


_OURS = "mvlm"


def _attend(
    module: nn.Module,
    query_BHLd: Tensor,
    key_BHLd: Tensor,
    value_BHLd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Packed | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature that transformers asks of an attention; all packed texts are one row of it."""
    if packed is None:
        return attention(query_BHLd, key_BHLd, value_BHLd, attention_mask, dropout).transpose(1, 2), None
    query, key, value = (x[0].transpose(0, 1) for x in (query_BHLd, key_BHLd, value_BHLd))
    return PACKED_ATTENTION(query, key, value, packed, dropout)[None], None


AttentionInterface.register(_OURS, _attend)
AttentionMaskInterface.register(_OURS, sdpa_mask)  # bool, True = may be seen; none where there is no padding


def describe(config: Model, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The settings of the encoder that `config` asks for; raises `UserError` where they cannot be had."""
    settings: dict[str, Any] = dict(config.text_args)
    settings |= {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    settings |= {"dropout": config.dropout, "attention_dropout": config.dropout}  # the names some encoders use
    if config.text_weights == "random":
        settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | settings
    try:
        if is_model_type(config.text):
            return AutoConfig.for_model(config.text, **settings)
        if not Path(config.text).is_dir():
            hub.ask()
        return AutoConfig.from_pretrained(config.text, **settings)
    except Exception as error:  # transformers and the hub raise many kinds; all mean this encoder cannot be had
        raise _not_built(config, error) from error


def is_model_type(text: str) -> bool:
    """Whether `model.text` names a kind of encoder, "roberta", and not a certain one."""
    return text in CONFIG_MAPPING and not Path(text).exists()


def check_has_weights(config: Model) -> None:
    """Raise `UserError` where pretrained weights are asked of a model type."""
    if is_model_type(config.text) and config.text_weights == "pretrained":
        raise UserError(
            f"model.text {config.text!r} is a model type, which has no weights: set model.text_weights = 'random', or "
            "name a pretrained encoder."
        )


def _create(config: Model, settings: PretrainedConfig) -> Any:
    try:
        return AutoModel.from_config(settings)
    except Exception as error:  # transformers raises many kinds; all mean this encoder cannot be had
        raise _not_built(config, error) from error


def _not_built(config: Model, error: Exception) -> UserError:
    return UserError(
        f"model.text {config.text!r} cannot be built ({hub.reason(error)}): "
        "check the name and text_args, give a local folder, or a model type with text_weights = 'random'."
    )


def _fill(model: Any, config: Model) -> Filled:
    """Give the encoder the weights of `model.text` itself, or those of a checkpoint of others."""
    settings = model.config
    if config.text_weights == "pretrained":
        foreign = _of_transformers(config)
        where = config.text
    else:
        where = config.text_weights
        kind = described_kind(where)
        if kind and kind != settings.model_type:
            raise UserError(
                f"{where} holds a {kind!r} and model.text {config.text!r} is a {settings.model_type!r}: set model.text "
                f"to that folder, and data.tokenizer to its tokenizer."
            )
        found = text_encoder(read_tensors(where), model.base_model_prefix, where)
        if found is None:
            raise UserError(
                f"{where} holds no text encoder of a known kind: give a checkpoint of a transformers encoder, of ALBEF "
                "or of BLIP to model.text_weights."
            )
        foreign, where = found, f"{where} ({found.family})"
    depth = settings.num_hidden_layers
    if foreign.layers is not None and depth > foreign.layers:
        raise UserError(
            f"{where} has {foreign.layers} layers that read text alone, and {depth} are asked for: the others expect "
            f"an image; set model.text_args.num_hidden_layers = {foreign.layers}."
        )
    filled = Filled("text encoder", where)
    advice = "set model.text, model.text_args (vocab_size among them) and data.tokenizer to those of the checkpoint"
    fill(model, foreign, filled, fit_text_positions(model, _first_position(settings)), (), advice)
    return filled


def _first_position(settings: PretrainedConfig) -> int:
    """The row of the position embeddings that a text's first token has."""
    return PACKABLE.get(settings.model_type, 0) * ((settings.pad_token_id or 0) + 1)


def _of_transformers(config: Model) -> Foreign:
    """The weights of a name or folder as transformers itself reads them."""
    check_has_weights(config)
    if not Path(config.text).is_dir():
        hub.ask()
    try:
        model, found = AutoModel.from_pretrained(config.text, output_loading_info=True)
    except Exception as error:
        raise _not_built(config, error) from error
    lacking = {name for name in found["missing_keys"] if not name.startswith("pooler.")}
    tensors = {name: tensor for name, tensor in model.named_parameters() if name not in lacking}
    return Foreign("transformers", tensors, len(found["unexpected_keys"]))
