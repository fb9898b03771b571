"""The configuration of an exported model, which transformers reads before its weights."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from transformers import PretrainedConfig

from mvlm.config.load import config_from_dict
from mvlm.config.schema import Blueprint

NEEDED = ("timm", "torchvision")
"""Packages that users of transformers may lack: the image encoder is timm's, and timm imports torchvision."""


class MaskVLMConfig(PretrainedConfig):
    """Configuration of an exported model for pretraining or retrieval.

    Args:
        settings: the tables `model`, `objectives` and `task` of the run's TOML, its encoders named by their kind and
            described in full, and `data.text_length`.
        vocabulary: the number of tokens that the text encoder knows.
        pad_token_id: the padding token.
    """

    model_type = "maskvlm"

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        vocabulary: int = 0,
        pad_token_id: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.settings, self.vocabulary, self.pad_token_id = settings or {}, vocabulary, pad_token_id
        self.tie_word_embeddings = True  # else transformers ignores which names share a weight
        _require_packages()

    def blueprint(self) -> Blueprint:
        """The blueprint that the model is built from; raises `UserError` if the settings are damaged."""
        return config_from_dict(self.settings, "config.json, settings").blueprint


class MaskVLMTaskConfig(MaskVLMConfig):
    """Configuration of an exported model fine-tuned for VQA, NLVR2 or entailment; its classes are `id2label`."""

    model_type = "maskvlm_task"


def _require_packages() -> None:
    """Raise an `ImportError` that says what to install, before the model's own code fails to import."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise ImportError(f"This model needs {' and '.join(missing)}: pip install {' '.join(missing)}.")
