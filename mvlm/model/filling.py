"""An encoder filled with somebody's tensors, every one of them, with a note of each; or an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from mvlm.errors import UserError
from mvlm.model.finite import require_finite
from mvlm.model.names import Foreign

Shape = tuple[int, ...]

PART_OF_A_VIT = re.compile(
    r"(blocks\.\d+\.|pos_embed$|cls_token$|reg_token$|dist_token$|patch_embed\.|norm_pre\.|norm\.|rel_pos_bias\.)"
    r"(?!.*relative_position_index$)"
)
"""What changes an image encoder's output, so that none of it may be left out but blocks beyond the last."""

LAST_NORM = ("norm.weight", "norm.bias")
"""Absent where a classifier was trained on the mean of all tokens with a norm of its own: it then begins as it is."""


@dataclass
class Filled:
    """What became of the tensors of one part of the model.

    Attributes:
        part: "image encoder", "text encoder", or "model".
        source: whose tensors, and where from.
        matched: hold what the source has under that name.
        resized: the same, fitted: shape there and here.
        fresh: initialised anew.
        left: in the source and not used.
    """

    part: str
    source: str
    matched: list[str] = field(default_factory=list)
    resized: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    others: int = 0

    def __str__(self) -> str:
        total = len(self.matched) + len(self.resized) + len(self.fresh)
        told = [f"{len(self.matched) + len(self.resized)} of {total} tensors from {self.source}"]
        for name, (there, here) in self.resized.items():
            told.append(f"{name} resized from {' x '.join(map(str, there))} to {' x '.join(map(str, here))}")
        if self.fresh:
            told.append(f"{len(self.fresh)} new ({', '.join(self.fresh[:3])}{', …' * (len(self.fresh) > 3)})")
        if unused := len(self.left) + self.others:
            told.append(f"{unused} of the checkpoint not used")
        return f"{self.part.capitalize()}: {'; '.join(told)}."

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Fit = Callable[[str, Tensor], Tensor | None]
"""A tensor of another shape by name -> the same fitted to the encoder, or None where that cannot be done."""


def fill(module: nn.Module, foreign: Foreign, filled: Filled, fit: Fit, optional: tuple[str, ...], advice: str) -> None:
    """Copy every parameter of `module` out of a checkpoint, and note it in `filled`.

    Args:
        optional: parameters that may keep their initial values.
        advice: what to do where the two do not match, the end of the sentence.

    Raises:
        UserError: a parameter is missing there, of a shape that cannot be fitted, or no finite number.
    """
    parameters = dict(module.named_parameters())
    wrong: list[str] = []
    for name, parameter in parameters.items():
        tensor = foreign.tensors.get(name)
        here, there = tuple(parameter.shape), None if tensor is None else tuple(tensor.shape)
        if tensor is not None and there != here:
            tensor = fit(name, tensor)
        if tensor is None or tuple(tensor.shape) != here:
            if there is None and name in optional:
                filled.fresh.append(name)
                continue
            wrong.append(f"{name} is {_shape(here)} here and {'missing' if there is None else _shape(there)} there")
            continue
        require_finite(name, tensor, filled.source)
        with torch.no_grad():
            parameter.copy_(tensor)
        if there == here:
            filled.matched.append(name)
        elif there:
            filled.resized[name] = there, here
    if wrong:
        raise UserError(
            f"{filled.source} does not fit the {filled.part}: {len(wrong)} of its {len(parameters)} tensors, "
            f"{'; '.join(wrong[:2])}: {advice}."
        )
    filled.left = sorted(foreign.tensors.keys() - parameters.keys())
    filled.others = foreign.others


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a number"


def fit_image_positions(vit: Any, grid: tuple[int, int]) -> Fit:
    """Bicubic, as timm fits the positions of its pretrained weights; those of CLS and its like stay."""
    prefix = 0 if getattr(vit, "no_embed_class", False) else int(vit.num_prefix_tokens)

    def fit(name: str, tensor: Tensor) -> Tensor | None:
        target = dict(vit.named_parameters())[name]
        if name == "pos_embed" and tensor.ndim == 3 and tensor.shape[-1] == target.shape[-1]:
            old = round((tensor.shape[1] - prefix) ** 0.5)
            if old < 1 or old * old != tensor.shape[1] - prefix:
                return None
            return resample_abs_pos_embed(tensor.float(), list(grid), num_prefix_tokens=prefix)
        if name.endswith("relative_position_bias_table") and tensor.shape[1:] == target.shape[1:]:
            return resize_rel_pos_bias_table(tensor.float(), grid, tuple(target.shape))
        return None

    return fit


def check_nothing_is_left_out(vit: Any, foreign: Foreign, source: str) -> None:
    """Raises: UserError: the checkpoint's image encoder has something that this one lacks, beside blocks at its end."""
    for name in sorted(foreign.tensors.keys() - dict(vit.named_parameters()).keys()):
        block = re.match(r"blocks\.(\d+)\.", name)
        if PART_OF_A_VIT.match(name) and not (block and int(block[1]) >= len(vit.blocks)):
            raise UserError(
                f"{source} has {name}, which model.vision lacks, so that it would compute something else: "
                f"{_remedy(name)}."
            )


def _remedy(name: str) -> str:
    if "relative_position" in name:
        shared = "false" if name.startswith("blocks.") else "true"
        own = "true" if name.startswith("blocks.") else "false"
        return (
            "set model.vision = 'beit_base_patch16_224' and model.vision_args = {use_abs_pos_emb = false, "
            f"use_rel_pos_bias = {own}, use_shared_rel_pos_bias = {shared}, init_values = 0.1}}"
        )
    if ".gamma" in name or re.search(r"\.ls[12]\.", name):
        return "add init_values = 0.1 to model.vision_args"
    return "set model.vision to the architecture that it was trained with"


def fit_text_positions(module: nn.Module, first: int) -> Fit:
    """Positions of a text cut to the first ones, or extended by the same ones over again (Beltagy et al., 2020).

    Args:
        first: the row of a text's first token; those before stay.
    """

    def fit(name: str, tensor: Tensor) -> Tensor | None:
        target = dict(module.named_parameters())[name]
        if not name.endswith("position_embeddings.weight") or tensor.shape[1:] != target.shape[1:]:
            return None
        rows, wanted = len(tensor), len(target)
        row = torch.arange(wanted)
        return tensor[torch.where(row < rows, row, first + (row - first) % max(1, rows - first))]

    return fit
