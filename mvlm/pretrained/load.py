"""Fills encoders with the weights that a configuration names, every tensor of them, and reports; or raises."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoModel

from mvlm.checkpoint.tensors import require_finite
from mvlm.config.schema import Blueprint, Model
from mvlm.errors import UserError
from mvlm.model.convolutional import Convolutional
from mvlm.model.encoders import Encoders
from mvlm.model.initialization import InitialWeights
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder
from mvlm.pretrained.convolutional import find_convolutional
from mvlm.pretrained.encoders import Tokens, build_recorded, check_has_weights, create_vit, text_not_built
from mvlm.pretrained.key_maps import (
    WORD_EMBEDDINGS,
    ExternalCheckpoint,
    as_timm_has_it,
    find_image_encoder,
    find_text_encoder,
    with_layout_of,
)
from mvlm.pretrained.positions import Fit, fit_image_positions, fit_text_positions
from mvlm.pretrained.read import described_kind, described_pixels, read_tensors
from mvlm.pretrained.report import InitReport, LoadReport, shown
from mvlm.runtime import hub

MASK_TOKEN = "patch_embed.mask_token"
EMBED = "embed."
"""Prefix of the parameters that make tokens of a convolutional network's feature map, which the network lacks."""

PART_OF_A_VIT = re.compile(
    r"(blocks\.\d+\.|pos_embed$|cls_token$|reg_token$|dist_token$|patch_embed\.|norm_pre\.|norm\.|rel_pos_bias\.)"
    r"(?!.*relative_position_index$)"
)
"""Tensors that change an image encoder's output, so that none may be left out except blocks beyond the last."""

LAST_NORM = ("norm.weight", "norm.bias")
"""Absent if a classifier was trained on the mean of all tokens with its own norm: it then keeps its initial values."""

Parameters = Mapping[str, Parameter]
Give = Callable[[Parameter, Tensor], None]
"""Sets a parameter's initial value to a tensor of its shape."""


def build_with_weights(
    blueprint: Blueprint, tokenizer: Tokens, classes: int = 0
) -> tuple[Encoders, InitialWeights, InitReport | None]:
    """The model of shapes alone, and its initial weights: those that `[model]` names for its encoders, else random.

    Returns:
        The model, the weights, and a report of where they come from, None if all were meant to be random.

    Raises:
        UserError: the weights are not available, or are another encoder's.
    """
    settings = blueprint.model
    model, initial = build_recorded(blueprint, tokenizer, classes)
    image = fill_image_encoder(model.vision, settings, initial.give) if settings.vision_weights != "random" else None
    sentence = fill_text_encoder(model.text, settings, initial.give) if settings.text_weights != "random" else None
    loaded = tuple(filter(None, (image, sentence)))
    filled = tuple(prefix for prefix, report in (("vision.vit.", image), ("text.", sentence)) if report)
    has_token = image is not None and MASK_TOKEN in image.matched
    fresh = [
        name
        for name, _ in model.named_parameters()
        if not name.startswith(filled)
        or (name.endswith(MASK_TOKEN) and not has_token)
        or (image is not None and name.removeprefix("vision.vit.") in image.fresh)
    ]
    return model, initial, InitReport(loaded, tuple(fresh)) if loaded else None


def copy_into(parameter: Parameter, tensor: Tensor) -> None:
    parameter.data.copy_(tensor)


def fill_image_encoder(vision: VisionEncoder, config: Model, give: Give = copy_into) -> LoadReport:
    """Give it timm's own weights, or those of an external checkpoint, with the mask token if that has one."""
    parameters = {as_timm_has_it(name): parameter for name, parameter in vision.vit.named_parameters()}
    mask_token = parameters.pop(MASK_TOKEN, None)
    if isinstance(vision.vit, Convolutional):
        return _fill_convolutional(vision.vit, parameters, mask_token, config, give)
    if config.vision_weights == "pretrained":
        return _fill_from_timm(parameters, vision, config, give)
    where = config.vision_weights
    tensors = read_tensors(where)
    external = find_image_encoder(tensors)
    if external is None:
        raise UserError(
            f"{where} holds no image encoder of a known kind (its tensors begin with {', '.join(list(tensors)[:2])}): "
            "give a checkpoint of timm, MAE, SimMIM, ALBEF, BLIP or a transformers ViT to model.vision_weights."
        )
    tensors = with_layout_of(external.tensors, parameters.keys())
    external = replace(external, tensors=tensors, pixels=external.pixels or described_pixels(where))
    _check_pixels(vision, external, config)
    report = LoadReport("image encoder", f"{where} ({external.family})")
    _check_nothing_is_left_out(parameters, len(vision.vit.blocks), external, report.source)
    advice = "set model.vision and model.vision_args to the encoder that the checkpoint holds"
    _fill(parameters, external, report, fit_image_positions(vision), advice, give, LAST_NORM)
    _fill_mask_token(mask_token, external, report, give)
    return report


def _fill_convolutional(
    encoder: Convolutional, parameters: Parameters, mask_token: Parameter | None, config: Model, give: Give
) -> LoadReport:
    """Give it a network's weights; the part that makes tokens of the feature map is new unless a run of ours has it."""
    external = find_convolutional(encoder, config)
    where = f"timm's {config.vision}" if config.vision_weights == "pretrained" else config.vision_weights
    report = LoadReport("image encoder", f"{where} ({external.family})")
    new = tuple(name for name in parameters if name.startswith(EMBED))
    advice = "set model.vision and model.vision_args to the network that the checkpoint holds"
    _fill(parameters, external, report, lambda *_: None, advice, give, new)
    _fill_mask_token(mask_token, external, report, give)
    return report


def _fill_mask_token(
    mask_token: Parameter | None, external: ExternalCheckpoint, report: LoadReport, give: Give
) -> None:
    """Give it the checkpoint's own mask token, if that has one of this shape."""
    if mask_token is not None and external.mask_token is not None and external.mask_token.shape == mask_token.shape:
        give(mask_token, external.mask_token)
        report.matched.append(MASK_TOKEN)


def fill_text_encoder(text: TextEncoder, config: Model, give: Give = copy_into) -> LoadReport:
    """Give it the weights of `model.text` itself, or those of an external checkpoint."""
    settings = text.settings
    if config.text_weights == "pretrained":
        external, where = _of_transformers(config), config.text
    else:
        where = config.text_weights
        kind = described_kind(where)
        if kind and kind != settings.model_type:
            raise UserError(
                f"{where} holds a {kind!r} and model.text {config.text!r} is a {settings.model_type!r}: set model.text "
                f"to that folder, and data.tokenizer to its tokenizer."
            )
        found = find_text_encoder(read_tensors(where), text.model.base_model_prefix, where)
        if found is None:
            raise UserError(
                f"{where} holds no text encoder of a known kind: give a checkpoint of a transformers encoder, of ALBEF "
                "or of BLIP to model.text_weights."
            )
        external, where = found, f"{where} ({found.family})"
    depth = settings.num_hidden_layers
    if external.layers is not None and depth > external.layers:
        raise UserError(
            f"{where} has {external.layers} layers that read text alone, and {depth} are asked for: the others expect "
            f"an image; set model.text_args.num_hidden_layers = {external.layers}."
        )
    report = LoadReport("text encoder", where)
    advice = "set model.text, model.text_args (vocab_size among them) and data.tokenizer to those of the checkpoint"
    _fill(dict(text.model.named_parameters()), external, report, fit_text_positions(text), advice, give)
    return report


def with_encoders_of(config: Model, place: str) -> Model:
    """The same model with each encoder that an external checkpoint holds taken from there.

    Raises:
        UserError: it holds none.
    """
    tensors = read_tensors(place)
    found: dict[str, Any] = {}
    if find_image_encoder(tensors):
        found["vision_weights"] = place
    if any(name.endswith(WORD_EMBEDDINGS) for name in tensors):
        found["text_weights"] = place
    if not found:
        raise UserError(
            f"checkpoint.init={place} holds no encoder of a known kind (its tensors begin with "
            f"{', '.join(list(tensors)[:2])}): give a run, or a checkpoint of timm, transformers, MAE, SimMIM, "
            "ALBEF or BLIP."
        )
    return replace(config, **found)


def _fill(
    parameters: Parameters,
    external: ExternalCheckpoint,
    report: LoadReport,
    fit: Fit,
    advice: str,
    give: Give,
    optional: tuple[str, ...] = (),
) -> None:
    """Give every parameter the checkpoint's tensor of its name, and note that in `report`.

    Args:
        advice: what to do if the two do not match, the end of the sentence.
        optional: parameters that may keep their initial values.

    Raises:
        UserError: a parameter is missing there, of a shape that cannot be fitted, or not finite.
    """
    wrong: list[str] = []
    for name, parameter in parameters.items():
        tensor = external.tensors.get(name)
        here = tuple(parameter.shape)
        there = None if tensor is None else tuple(tensor.shape)
        if tensor is not None and there != here:
            tensor = fit(name, tensor, here)
        if tensor is None or tuple(tensor.shape) != here:
            if there is None and name in optional:
                report.fresh.append(name)
                continue
            wrong.append(f"{name} is {shown(here)} here and {'missing' if there is None else shown(there)} there")
            continue
        require_finite(name, tensor, report.source)
        give(parameter, tensor)
        if there == here:
            report.matched.append(name)
        elif there:
            report.resized[name] = there, here
    if wrong:
        raise UserError(
            f"{report.source} does not fit the {report.part}: {len(wrong)} of its {len(parameters)} tensors, "
            f"{'; '.join(wrong[:2])}: {advice}."
        )
    report.left = sorted(external.tensors.keys() - parameters.keys())
    report.others = external.others


def _fill_from_timm(parameters: Parameters, vision: VisionEncoder, config: Model, give: Give) -> LoadReport:
    """Use timm's own weights; timm itself fits the positions to the image's size."""
    with torch.random.fork_rng(devices=[]):  # or the model's other weights would depend on this
        theirs = create_vit(config, pretrained=True)
    report = LoadReport("image encoder", f"timm's {config.vision}")
    external = ExternalCheckpoint("timm", dict(theirs.named_parameters()), 0)
    _fill(parameters, external, report, fit_image_positions(vision), "choose another encoder", give)
    trained_at = theirs.pretrained_cfg.get("input_size", (3, config.image_size))[-1]
    if "pos_embed" in report.matched and trained_at != config.image_size:
        _, positions, width = theirs.pos_embed.shape
        there = positions - theirs.patch_embed.num_patches + (trained_at // vision.patch) ** 2
        report.matched.remove("pos_embed")
        report.resized["pos_embed"] = (1, there, width), (1, positions, width)
    return report


def _check_pixels(vision: VisionEncoder, external: ExternalCheckpoint, config: Model) -> None:
    """The encoder must see pixels as it did in training, unless the user says otherwise."""
    given = config.vision_args.get("pretrained_cfg_overlay", {})
    here = vision.mean, vision.std
    if external.pixels is not None and external.pixels != here and not {"mean", "std"} <= given.keys():
        mean, std = (list(values) for values in external.pixels)
        raise UserError(
            f"{config.vision_weights} ({external.family}) was trained on pixels of mean {mean} and std {std}, and "
            f"model.vision {config.vision!r} has {list(here[0])} and {list(here[1])}: say which it is to be by "
            f"model.vision_args.pretrained_cfg_overlay = {{mean = {mean}, std = {std}}}."
        )


def _check_nothing_is_left_out(parameters: Parameters, depth: int, external: ExternalCheckpoint, source: str) -> None:
    """Raise `UserError` if the checkpoint's image encoder has anything that this one lacks but blocks at its end."""
    for name in sorted(external.tensors.keys() - parameters.keys()):
        block = re.match(r"blocks\.(\d+)\.", name)
        if PART_OF_A_VIT.match(name) and not (block and int(block[1]) >= depth):
            raise UserError(
                f"{source} has {name}, which model.vision lacks, so that it would compute something else: "
                f"{_remedy(name)}."
            )


def _remedy(name: str) -> str:
    if "relative_position" in name:
        own, shared = ("true", "false") if name.startswith("blocks.") else ("false", "true")
        return (
            "set model.vision = 'beit_base_patch16_224' and model.vision_args = {use_abs_pos_emb = false, "
            f"use_rel_pos_bias = {own}, use_shared_rel_pos_bias = {shared}, init_values = 0.1}}"
        )
    if ".gamma" in name or re.search(r"\.ls[12]\.", name):
        return "add init_values = 0.1 to model.vision_args"
    return "set model.vision to the architecture that it was trained with"


def _of_transformers(config: Model) -> ExternalCheckpoint:
    """The weights of a name or folder as transformers itself reads them."""
    check_has_weights(config)
    if not Path(config.text).is_dir():
        hub.ask()
    try:
        model, found = AutoModel.from_pretrained(config.text, output_loading_info=True)
    except Exception as error:
        raise text_not_built(config, error) from error
    lacking = {name for name in found["missing_keys"] if not name.startswith("pooler.")}
    tensors = {name: tensor for name, tensor in model.named_parameters() if name not in lacking}
    return ExternalCheckpoint("transformers", tensors, len(found["unexpected_keys"]))
