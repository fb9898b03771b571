"""Builds a run's model without its weights and without a network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mvlm.config.schema import Blueprint, Data, Model
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.errors import UserError
from mvlm.model.encoders import Encoders
from mvlm.model.finetune import TaskModel
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import Vocabulary, build_model


def _bert(vocabulary: int, width: int, depth: int, positions: int = 512) -> dict[str, int]:
    """The usual proportions: heads 64 wide, a feed-forward of four widths."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "max_position_embeddings": positions,
    }


_ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1}

KNOWN_TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "google-bert/bert-base-uncased": ("bert", _bert(30522, 768, 12)),
    "google-bert/bert-base-cased": ("bert", _bert(28996, 768, 12)),
    "google-bert/bert-large-uncased": ("bert", _bert(30522, 1024, 24)),
    "google-bert/bert-base-multilingual-cased": ("bert", _bert(119547, 768, 12)),
    "microsoft/MiniLM-L12-H384-uncased": ("bert", _bert(30522, 384, 12) | {"num_attention_heads": 12}),
    "FacebookAI/roberta-base": ("roberta", _bert(50265, 768, 12, 514) | _ROBERTA),
    "FacebookAI/roberta-large": ("roberta", _bert(50265, 1024, 24, 514) | _ROBERTA),
    "FacebookAI/xlm-roberta-base": ("xlm-roberta", _bert(250002, 768, 12, 514) | _ROBERTA),
    "FacebookAI/xlm-roberta-large": ("xlm-roberta", _bert(250002, 1024, 24, 514) | _ROBERTA),
    "facebook/xlm-roberta-xl": (
        "xlm-roberta-xl",
        _bert(250880, 2560, 36, 514) | _ROBERTA | {"num_attention_heads": 32},
    ),
    "facebook/xlm-roberta-xxl": (
        "xlm-roberta-xl",
        _bert(250880, 4096, 48, 514) | _ROBERTA | {"num_attention_heads": 32},
    ),
}
"""Well-known text encoders by their name on the Hugging Face hub: model type and what differs from that type's
defaults in the config.json there. Names without an owner, such as roberta-base, mean the same."""


def build_without_weights(blueprint: Blueprint, data: Data) -> MaskVLM:
    """The model of a blueprint for pretraining or retrieval, on torch's meta device, which takes no memory.

    Raises:
        UserError: the task is another than pretraining or retrieval, or an encoder is not known here.
    """
    if blueprint.task.is_labelled:
        raise UserError(
            f"A run of task.name = {blueprint.task.name!r} cannot be planned: give a configuration of pretraining or "
            "retrieval."
        )
    return cast(MaskVLM, _build(blueprint, data, 0))


def build_task_without_weights(blueprint: Blueprint, data: Data, classes: int) -> TaskModel:
    """The same for a task that chooses among classes."""
    return cast(TaskModel, _build(blueprint, data, classes))


def _build(blueprint: Blueprint, data: Data, classes: int) -> Encoders:
    model, tokenizer = without_weights(blueprint.model, data)
    with torch.device("meta"):
        return build_model(dataclasses.replace(blueprint, model=model), tokenizer, classes)


def without_weights(model: Model, data: Data) -> tuple[Model, Vocabulary]:
    """The model's configuration with random weights in place of pretrained ones, and its vocabulary."""
    given = None
    if data.tokenizer not in ("", "auto"):
        given = len(load_tokenizer(data.tokenizer))
    elif data.tokenizer == "auto":
        given = data.vocabulary
    if model.text in CONFIG_MAPPING and not Path(model.text).exists():
        kind, settings = model.text, dict[str, Any]()
    else:
        kind, settings = _text_settings(model)
    vocabulary = settings.get("vocab_size", data.vocabulary)
    if model.text_weights == "random" and given is not None:
        vocabulary = given
    random = dataclasses.replace(
        model,
        text=kind,
        text_args={key: value for key, value in settings.items() if key != "vocab_size"} | model.text_args,
        text_weights="random",
        vision_weights="random",
    )
    return random, Vocabulary(vocabulary, pad_token_id=1)


def _text_settings(model: Model) -> tuple[str, dict[str, Any]]:
    """Model type and settings of a text encoder: from its folder, this machine's cache of the hub, or `KNOWN_TEXT`."""
    try:
        found = AutoConfig.from_pretrained(model.text, local_files_only=True)
        return found.model_type, {
            k: v for k, v in found.to_diff_dict().items() if k not in ("model_type", "_name_or_path")
        }
    except Exception:  # transformers and the hub raise many kinds; all mean that the encoder is not here
        by_name = KNOWN_TEXT | {name.split("/")[1]: known for name, known in KNOWN_TEXT.items()}
        if model.text in by_name:
            return by_name[model.text]
        raise UserError(
            f"model.text {model.text!r} is not known here and is not in the hub's cache: give a local "
            f"folder, download it once, or plan with one of {', '.join(KNOWN_TEXT)}."
        ) from None
