"""Fits position embeddings to another image size or text length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

from mvlm.errors import UserError
from mvlm.model.text import TextEncoder
from mvlm.model.vision import VisionEncoder
from mvlm.pretrained.report import Shape

VISION = "vision.vit."
"""Prefix of the names of the image encoder's parameters."""

Fit = Callable[[str, Tensor, Shape], Tensor | None]
"""The name and tensor of a parameter, and another shape -> the tensor fitted to that, or None if it cannot be."""


def fit_image_positions(vision: VisionEncoder, interpolation: str = "bicubic") -> Fit:
    """Bicubic, as timm fits the positions of its pretrained weights; those of CLS and other prefix tokens stay."""
    prefix = 0 if getattr(vision.vit, "no_embed_class", False) else int(vision.vit.num_prefix_tokens)

    def fit(name: str, tensor: Tensor, here: Shape) -> Tensor | None:
        if name == "pos_embed" and tensor.ndim == 3 and tensor.shape[-1] == here[-1]:
            old = round((tensor.shape[1] - prefix) ** 0.5)
            if old < 1 or old * old != tensor.shape[1] - prefix:
                return None
            grid = list(vision.grid)
            return resample_abs_pos_embed(tensor.float(), grid, num_prefix_tokens=prefix, interpolation=interpolation)
        if name.endswith("relative_position_bias_table") and tensor.shape[1:] == here[1:]:
            return resize_rel_pos_bias_table(tensor.float(), vision.grid, here)
        return None

    return fit


def is_image_position(name: str) -> bool:
    """Whether the shape of a model's parameter depends on the size of images."""
    return name == f"{VISION}pos_embed" or (name.startswith(VISION) and name.endswith("relative_position_bias_table"))


def fit_trained(vision: VisionEncoder, name: str, whole: dict[str, Tensor], here: Shape) -> dict[str, Tensor]:
    """A parameter and its optimiser's moments, for images of another size: weights by `fit_image_positions`.

    Moments are fitted bilinearly, which averages with positive weights: so the second ones stay above 0, and each
    update has the size of those around it. Those of a table of relative positions restart at 0.

    Args:
        whole: the tensors by kind: "weight", "ema" or the name of a moment.

    Raises:
        UserError: the weight cannot be fitted.
    """
    if tuple(whole["weight"].shape) == here:
        return whole
    found = {}
    for key, tensor in whole.items():
        is_moment = key not in ("weight", "ema")
        if is_moment and not name.endswith("pos_embed"):
            found[key] = torch.zeros(here)
            continue
        fit = fit_image_positions(vision, "bilinear" if is_moment else "bicubic")
        fitted = fit(name.removeprefix(VISION), tensor, here)
        if fitted is None:
            raise UserError(
                f"{name} of shape {tuple(tensor.shape)} cannot be fitted to {here}: leave model.image_size as it is."
            )
        found[key] = fitted
    return found


def fit_text_positions(text: TextEncoder) -> Fit:
    """Cut the positions of a text to the first ones, or extend them by repetition (Beltagy et al., 2020); the rows
    before a text's first token stay, of which the last is the table's padding."""

    def fit(name: str, tensor: Tensor, here: Shape) -> Tensor | None:
        if not name.endswith("position_embeddings.weight") or tensor.shape[1:] != here[1:]:
            return None
        padding = text.model.get_submodule(name.removesuffix(".weight")).padding_idx
        first = 0 if padding is None else padding + 1
        rows, row = len(tensor), torch.arange(here[0])
        return tensor[torch.where(row < rows, row, first + (row - first) % max(1, rows - first))]

    return fit
