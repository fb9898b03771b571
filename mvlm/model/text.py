"""Text encoder: any BERT-like transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mvlm.config import Model
from mvlm.errors import UserError


class TextEncoder(nn.Module):
    """Token ids to token features; the first token is the sentence's CLS."""

    def __init__(self, config: Model, tokenizer: PreTrainedTokenizerBase, load_weights: bool) -> None:
        super().__init__()
        self.pretrained = load_weights and config.text_weights == "pretrained"
        settings = _settings(config, tokenizer)
        self.model: Any = _create(config, settings, self.pretrained)
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None  # would get no gradient
        self.settings: PretrainedConfig = self.model.config
        self.width: int = self.settings.hidden_size
        self.embedding: nn.Embedding = self.model.get_input_embeddings()
        if self.embedding.num_embeddings < len(tokenizer):
            raise UserError(
                f"The tokenizer has {len(tokenizer)} tokens and model.text {config.text!r} only "
                f"{self.embedding.num_embeddings}: set data.tokenizer to the encoder's own."
            )

    def forward(self, text_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """int64 BL, bool BL (False = padding) -> BLD."""
        return self.model(input_ids=text_BL, attention_mask=valid_BL.long()).last_hidden_state


def _settings(config: Model, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    settings = dict(config.text_args)
    settings |= {"hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout}
    settings |= {"dropout": config.dropout, "attention_dropout": config.dropout}  # the names some encoders use
    if config.text_weights == "random":
        settings |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return settings


def _create(config: Model, settings: dict[str, Any], pretrained: bool) -> Any:
    try:
        if config.text in CONFIG_MAPPING and not Path(config.text).exists():
            if pretrained:
                raise ValueError("it is a model type, which has no weights; set text_weights = 'random'")
            return AutoModel.from_config(AutoConfig.for_model(config.text, **settings))
        if pretrained:
            return AutoModel.from_pretrained(config.text, **settings)
        return AutoModel.from_config(AutoConfig.from_pretrained(config.text, **settings))
    except Exception as error:  # transformers and the hub raise many kinds; all mean this encoder cannot be had
        raise UserError(
            f"model.text {config.text!r} cannot be built ({str(error).splitlines()[0] if str(error) else error!r}): "
            "check the name and text_args, give a local folder, or a model type with text_weights = 'random'."
        ) from error
