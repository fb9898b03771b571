"""Which parameters are trained how fast."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from mvlm.checkpoint.cut import whole_shape
from mvlm.config.schema import Optim
from mvlm.model.encoders import Encoders
from mvlm.training.blocks import find_blocks

ENCODERS = ("vision.vit.", "text.")
EMBED = "vision.vit.embed."
"""Turns a convolutional network's feature map into tokens; it is a new module."""
BELOW_THE_BLOCKS = (
    *("cls_token", "pos_embed", "reg_token", "dist_token", "patch_embed", "norm_pre"),
    *("embeddings", "embed_tokens", "encoder.embedding_hidden_mapping_in"),
)
"""Prefixes of the names of an encoder's parameters that come before its first block."""


def parameter_groups(
    model: Encoders, config: Optim, frozen_until: Mapping[str, int] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """AdamW groups: encoders and new modules at their own peak rates, norms and biases without weight decay.

    With `optim.layer_decay` below 1, an encoder of L blocks has its rate multiplied by layer_decay ** (L + 1 - i) in
    layer i, where embeddings are layer 0, block number b (from 0) is layer b + 1 and what follows is L + 1, as in BEiT
    (microsoft/unilm, beit/optim_factory.py) and MAE (facebookresearch/mae, util/lr_decay.py).

    With `optim.name` = "muon" the matrices of transformer blocks are in groups of their own, with a true `muon`.

    Each group has `name`, `params`, `lr`, `peak_lr` and `weight_decay`. A tied weight belongs to its encoder; frozen
    parameters belong to none.

    Args:
        frozen_until: updates before which a part, by its name, was not trained: it is in groups of its own, which
            `set_rates` needs.
    """
    groups: dict[str, dict[str, Any]] = {}
    layers = layer_of(model) if config.layer_decay < 1 else {}
    matrices = {id(p) for p in block_matrices(model)} if config.name == "muon" else set()
    began = {id(p): count for part, count in frozen_until.items() for p in model.get_submodule(part).parameters()}
    for part, peak in (("encoder", config.encoder_lr), ("new", config.lr)):
        for kind, decay in (("muon", config.weight_decay), ("decay", config.weight_decay), ("no_decay", 0.0)):
            name = f"{part}_{kind}"
            groups[name] = {"name": name, "params": [], "lr": peak, "peak_lr": peak, "weight_decay": decay}
            if kind == "muon":
                groups[name]["muon"] = True
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_new = not name.startswith(ENCODERS) or name.endswith("mask_token") or name.startswith(EMBED)
        kind = "muon" if id(parameter) in matrices else "no_decay" if len(whole_shape(parameter)) <= 1 else "decay"
        group = groups[f"{'new' if is_new else 'encoder'}_{kind}"]
        if name in layers and not is_new:
            layer, last = layers[name]
            rate = config.encoder_lr * config.layer_decay ** (last - layer)
            title = f"{name.split('.')[0]}_{layer:02d}_{kind}"
            group = groups.setdefault(title, group | {"name": title, "params": [], "lr": rate, "peak_lr": rate})
        if count := began.get(id(parameter), 0):
            title = f"{group['name']}_from_{count}"
            apart = {"name": title, "params": [], "frozen_until": count, "full_decay": group["weight_decay"]}
            group = groups.setdefault(title, group | apart)
        group["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def set_rates(groups: list[dict[str, Any]], lr_factor: float, updates: int) -> None:
    """Set the learning rates of the update that follows `updates` others.

    AdamW corrects moments, which begin at zero, by the optimiser's one count of updates, and those of a group that was
    frozen come from fewer. What its own count would make of the step is multiplied into its rate, and taken out of its
    weight decay: the update is AdamW's of that count, but for epsilon.
    """
    for group in groups:
        group["lr"] = group["peak_lr"] * lr_factor
        if "frozen_until" in group and not group.get("muon"):
            own = _step_size(group["betas"], updates + 1 - group["frozen_until"])
            correction = own / _step_size(group["betas"], updates + 1)
            group["lr"] *= correction
            group["weight_decay"] = group["full_decay"] / correction


def _step_size(betas: tuple[float, float], count: int) -> float:
    """What AdamW's corrections make of a step of moments that come from `count` updates."""
    return math.sqrt(1 - betas[1] ** count) / (1 - betas[0] ** count)


def block_matrices(model: nn.Module) -> Iterator[Tensor]:
    """The weights of linear layers in transformer blocks: neither embeddings nor heads nor projections out of them."""
    for block in find_blocks(model):
        yield from (module.weight for module in block.modules() if isinstance(module, nn.Linear))


def muon_shapes(model: Encoders, config: Optim) -> list[list[tuple[int, int]]]:
    """Of the matrices that Muon updates in a model that is whole, by parameter group; none if AdamW updates all."""
    groups = [group["params"] for group in parameter_groups(model, config) if group.get("muon")]
    return [[(matrix.shape[0], matrix.shape[1]) for matrix in group] for group in groups]


def layer_of(model: Encoders) -> dict[str, tuple[int, int]]:
    """By name of an encoder's parameter: the layer it belongs to, and the last layer."""
    layers: dict[str, tuple[int, int]] = {}
    for prefix, encoder in (("vision.vit.", model.vision.vit), ("text.model.", model.text.model)):
        blocks = list(find_blocks(encoder))
        number = {id(p): layer for layer, block in enumerate(blocks, 1) for p in block.parameters()}
        last = len(blocks) + 1
        for name, parameter in encoder.named_parameters():
            layer = 0 if name.startswith(BELOW_THE_BLOCKS) else last
            layers[prefix + name] = number.get(id(parameter), layer), last
    return layers


def count_parameters(model: nn.Module) -> int:
    """How many parameters a model has, even one that is split by layers or divided by ZeRO stage 3."""
    return sum(math.prod(whole_shape(parameter)) for parameter in model.parameters())
