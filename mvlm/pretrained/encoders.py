"""Builds a model with random weights: its encoders by name, and everything on top of them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mvlm.config.schema import Blueprint, Model
from mvlm.errors import UserError
from mvlm.model import dictionary
from mvlm.model.convolutional import Convolutional, PixelPatches
from mvlm.model.encoders import Encoders
from mvlm.model.finetune import TaskModel
from mvlm.model.init_record import recorded
from mvlm.model.initialization import InitialWeights
from mvlm.model.maskvlm import MaskVLM
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder
from mvlm.runtime import hub

POSITION_STD = 3**-0.5
"""Of the patches' random position embeddings: as large as a random convolution's output for an even patch of value 1.

Compared with such patches timm's 0.02 is nothing, and a small model takes thousands of steps to learn positions."""


CONVOLUTIONAL = tuple(f"timm.models.{family}" for family in ("efficientnet", "mobilenetv3", "resnet"))
"""Modules of timm whose networks end in a feature map of `num_features` channels."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model's shape depends on in a tokenizer, to stand in for one."""

    size: int
    pad_token_id: int

    def __len__(self) -> int:
        return self.size


Tokens = PreTrainedTokenizerBase | Vocabulary


def build_model(blueprint: Blueprint, tokenizer: Tokens, classes: int = 0) -> Encoders:
    """The model of a blueprint, with random weights; of shapes alone if torch's default device is "meta".

    Args:
        classes: that a fine-tuning task chooses among; 0 = no such task.

    Raises:
        UserError: an encoder is not available, or is not one that this model can use.
    """
    if torch.get_default_device().type == "meta":
        return assemble(blueprint, tokenizer, classes)
    model, initial = build_recorded(blueprint, tokenizer, classes)
    initial.materialize()
    return model


def build_recorded(blueprint: Blueprint, tokenizer: Tokens, classes: int = 0) -> tuple[Encoders, InitialWeights]:
    """The same model of shapes alone, and its initial weights; raises like `build_model`."""
    with recorded() as record:
        model = assemble(blueprint, tokenizer, classes)
        model.text.model.initialize_weights()  # transformers does not on the meta device
    for module in model.text.model.modules():
        module._is_hf_initialized = False  # `from_pretrained` then fills its buffers again
    return model, InitialWeights(model, record, blueprint.seed)


def assemble(blueprint: Blueprint, tokenizer: Tokens, classes: int) -> Encoders:
    """The same model as torch and the encoders' libraries build and fill it; raises like `build_model`."""
    vision = build_image_encoder(blueprint.model, blueprint.objectives.image_masking == "drop")
    text = build_text_encoder(blueprint.model, tokenizer)
    if classes:
        return TaskModel(vision, text, blueprint.model, blueprint.task, classes)
    return MaskVLM(vision, text, blueprint.model, blueprint.objectives, blueprint.seed, blueprint.text_length)


def build_image_encoder(config: Model, drops: bool = False) -> VisionEncoder:
    vit: Any = create_convolutional(config) if is_convolutional(config.vision) else create_vit(config)
    _check(vit, config)
    if drops and not isinstance(getattr(vit, "patch_drop", None), nn.Identity):
        raise UserError(
            f"model.vision {config.vision!r} cannot leave out patches: set objectives.image_masking = 'token', "
            "or choose a plain vision transformer without patch_drop_rate."
        )
    if config.vision_weights == "random" and getattr(vit, "pos_embed", None) is not None:
        nn.init.trunc_normal_(vit.pos_embed.data[:, -vit.patch_embed.num_patches :], std=POSITION_STD)
    return VisionEncoder(vit, drops)


def create_vit(config: Model, pretrained: bool = False) -> Any:
    """The vision transformer that `model.vision` names, with timm's own weights if they are asked for."""
    name = f"local-dir:{config.vision}" if Path(config.vision).is_dir() else config.vision
    arguments: dict[str, Any] = dict(config.vision_args, img_size=config.image_size, num_classes=0, global_pool="token")
    if config.dropout:
        arguments |= dict.fromkeys(("drop_rate", "proj_drop_rate", "attn_drop_rate"), config.dropout)
    if pretrained or name.startswith(("hf-hub:", "hf_hub:")):
        hub.ask()
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # timm and the hub raise many kinds; all mean that these cannot be used
        raise UserError(
            f"model.vision {config.vision!r} cannot be built with vision_weights={config.vision_weights!r} "
            f"({hub.reason(error)}): name a vision transformer with a CLS token, check vision_args, or use a local "
            "folder or 'random'."
        ) from error


def is_convolutional(name: str) -> bool:
    """Whether `model.vision` names a convolutional network of a family in `CONVOLUTIONAL`, or a dictionary."""
    architecture = name.split(".")[0]
    if name == dictionary.NAME:
        return True
    return timm.is_model(architecture) and timm.model_entrypoint(architecture).__module__ in CONVOLUTIONAL


def create_convolutional(config: Model) -> Convolutional:
    """`embed_dim` in `vision_args` is the width of the tokens; all else goes to timm."""
    arguments = dict(config.vision_args)
    width = int(arguments.pop("embed_dim", 0))
    return Convolutional(create_trunk(config.vision, arguments), config.image_size, width)


def create_trunk(name: str, arguments: dict[str, Any], pretrained: bool = False) -> Any:
    """A convolutional network without its classifier, its batch norms as they are.

    Raises:
        UserError: it cannot be built.
    """
    if name == dictionary.NAME:
        return _create_dictionary(arguments, pretrained)
    if pretrained:
        hub.ask()
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except Exception as error:  # timm and the hub raise many kinds; all mean that these cannot be used
        raise UserError(
            f"model.vision {name!r} cannot be built ({hub.reason(error)}): check vision_args, or give its weights as a "
            "file to model.vision_weights."
        ) from error


def _create_dictionary(arguments: dict[str, Any], pretrained: bool) -> dictionary.PatchDictionary:
    if pretrained:
        raise UserError(
            f"model.vision {dictionary.NAME!r} has no weights but a corpus's own: make them with `mvlm dictionary` and "
            "give the file to model.vision_weights."
        )
    try:
        return dictionary.PatchDictionary(**arguments)
    except TypeError as error:
        raise UserError(
            f"model.vision_args of {dictionary.NAME!r}: {error}: give patches, dropout or embed_dim."
        ) from None


def _check(vit: Any, config: Model) -> None:
    has_cls = isinstance(vit, Convolutional) or getattr(vit, "cls_token", None) is not None
    if not has_cls or not hasattr(vit, "patch_embed"):
        raise UserError(
            f"model.vision {config.vision!r} has no CLS token: choose a vision transformer that has one, or an "
            "EfficientNet, a MobileNet or a ResNet."
        )
    if not isinstance(vit.patch_embed, (PatchEmbed, PixelPatches)):
        raise UserError(
            f"model.vision {config.vision!r} does not embed each patch by itself but by a "
            f"{type(vit.patch_embed).__name__}, so that masked patches could be seen in others: choose a plain vision "
            "transformer, such as 'vit_base_patch16_224'."
        )
    if config.vision_args.get("in_chans", 3) != 3:
        raise UserError(
            "model.vision_args.in_chans is not 3, and all images are read as RGB, grey ones too: take it out."
        )
    patch = vit.patch_embed.patch_size
    if patch[0] != patch[1] or config.image_size % patch[0]:
        raise UserError(
            f"model.image_size {config.image_size} is not a multiple of the {patch[0]} x {patch[1]} patches of "
            f"{config.vision!r}: change one of the two."
        )
    if config.vision_args.get("patch_drop_rate"):
        raise UserError(
            "model.vision_args.patch_drop_rate leaves out patches at random, so that masked ones lose their places: "
            "take it out; objectives.image_masking = 'drop' leaves out the masked ones."
        )


def build_text_encoder(config: Model, tokenizer: Tokens) -> TextEncoder:
    settings = text_settings(config, tokenizer)
    try:
        model = AutoModel.from_config(settings)
    except Exception as error:  # transformers raises many kinds; all mean that this encoder cannot be used
        raise text_not_built(config, error) from error
    encoder = TextEncoder(model, config.text_pool)
    if not isinstance(encoder.embedding, nn.Embedding):
        raise UserError(
            f"model.text {config.text!r} embeds its tokens by a {type(encoder.embedding).__name__}, of which no "
            "classifier of masked words can be made: use another, such as 'bert' or 'FacebookAI/roberta-base'."
        )
    if encoder.embedding.num_embeddings < len(tokenizer):
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens and model.text {config.text!r} only "
            f"{encoder.embedding.num_embeddings}: set data.tokenizer to the encoder's own."
        )
    return encoder


def text_settings(config: Model, tokenizer: Tokens) -> PretrainedConfig:
    """The settings of the encoder that `config` asks for; raises `UserError` if they are not available."""
    # "dropout" and "attention_dropout" are the names that some encoders use.
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")
    settings: dict[str, Any] = dict.fromkeys(names, config.dropout) | config.text_args
    if config.text_weights == "random":
        settings = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id} | settings
    try:
        if is_model_type(config.text):
            return AutoConfig.for_model(config.text, **settings)
        if not Path(config.text).is_dir():
            hub.ask()
        return AutoConfig.from_pretrained(config.text, **settings)
    except Exception as error:  # transformers and the hub raise many kinds; all mean that this encoder cannot be used
        raise text_not_built(config, error) from error


def is_model_type(text: str) -> bool:
    """Whether `model.text` names a kind of encoder, such as "roberta", and not a particular one."""
    return text in CONFIG_MAPPING and not Path(text).exists()


def check_has_weights(config: Model) -> None:
    """Raise `UserError` if pretrained weights are asked of a model type."""
    if is_model_type(config.text) and config.text_weights == "pretrained":
        raise UserError(
            f"model.text {config.text!r} is a model type, which has no weights: set model.text_weights = 'random', or "
            "name a pretrained encoder."
        )


def check_text_args(config: Model, tokenizer: Tokens) -> None:
    """Raise `UserError` if an argument is not a setting of the encoder: transformers stores it but never reads it."""
    taken, known = text_settings(config, tokenizer), text_settings(replace(config, text_args={}), tokenizer)
    for name in config.text_args:
        if hasattr(taken, name) and not hasattr(known, name):
            near = difflib.get_close_matches(name, known.to_dict(), n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "take it out."
            raise UserError(f"model.text_args names {name!r}, which {config.text!r} does not have: {remedy}")


def text_not_built(config: Model, error: Exception) -> UserError:
    return UserError(
        f"model.text {config.text!r} cannot be built ({hub.reason(error)}): "
        "check the name and text_args, give a local folder, or a model type with text_weights = 'random'."
    )
