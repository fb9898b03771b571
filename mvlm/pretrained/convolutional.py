"""Weights of convolutional image encoders: timm's own, those of EfficientNet-PyTorch, and patch dictionaries."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from mvlm.config.schema import Model
from mvlm.errors import UserError
from mvlm.model import dictionary
from mvlm.model.convolutional import Convolutional, folded
from mvlm.pretrained.encoders import create_trunk
from mvlm.pretrained.key_maps import ExternalCheckpoint, find_own_image_encoder
from mvlm.pretrained.read import read_tensors

TRUNK = "trunk."

OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""EfficientNet-PyTorch's names (lukemelas/EfficientNet-PyTorch, and efficientnet-lite-pytorch) and timm's: outside of
blocks, in those that expand their channels, and in those that do not, whose batch norms timm counts from 1 as well."""


def find_convolutional(encoder: Convolutional, config: Model) -> ExternalCheckpoint:
    """The weights that `model.vision_weights` names, by the encoder's own names, batch norms folded.

    Raises:
        UserError: they are not available, or of an unknown kind.
    """
    if config.vision_weights == "pretrained":
        arguments = {key: value for key, value in config.vision_args.items() if key != "embed_dim"}
        with torch.random.fork_rng(devices=[]):  # or the model's other weights would depend on this
            trunk = create_trunk(config.vision, arguments, pretrained=True)
        return _of_trunk(encoder, "timm", dict(trunk.state_dict()))
    tensors = read_tensors(config.vision_weights)
    if ours := find_own_image_encoder(tensors):
        return ours
    if config.vision == dictionary.NAME and "filters" in tensors:
        return _of_trunk(encoder, "patch dictionary", tensors)
    if "_conv_stem.weight" in tensors:
        _check_padding(config)
        names = [name for name, _ in encoder.trunk.named_parameters()]
        return _of_trunk(encoder, "EfficientNet-PyTorch", as_timm_names_them(tensors, names))
    if not any(name in tensors for name, _ in encoder.trunk.named_parameters()):
        raise UserError(
            f"{config.vision_weights} holds no convolutional network (its tensors begin with "
            f"{', '.join(list(tensors)[:2])}): give a checkpoint of timm or of EfficientNet-PyTorch, a "
            "run of yours or, for a patch_dictionary, the file that `mvlm dictionary` makes."
        )
    return _of_trunk(encoder, "timm", tensors)


def _check_padding(config: Model) -> None:
    """EfficientNet-PyTorch's networks are TensorFlow's; timm's other ones have the same tensors and other features."""
    name = config.vision.split(".")[0]
    if not name.startswith("tf_"):
        raise UserError(
            f"{config.vision_weights} (EfficientNet-PyTorch) was trained with TensorFlow's padding, which model.vision "
            f"{config.vision!r} does not have: set model.vision = 'tf_{name}'."
        )


def _of_trunk(encoder: Convolutional, family: str, tensors: dict[str, Tensor]) -> ExternalCheckpoint:
    return ExternalCheckpoint(family, {TRUNK + k: v for k, v in folded(encoder.trunk, tensors).items()}, 0)


def as_timm_names_them(tensors: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """EfficientNet-PyTorch's tensors under timm's names, which count blocks within stages.

    Args:
        names: those of timm's network, in its order.
    """
    blocks = list(dict.fromkeys(m[0] for name in names if (m := re.match(r"blocks\.\d+\.\d+\.", name))))
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.([^.]+)\.(.+)", name)
        if match and int(match[1]) < len(blocks):
            expands = f"_blocks.{match[1]}._expand_conv.weight" in tensors
            inner = EXPANDING | ({} if expands else PLAIN)
            found[f"{blocks[int(match[1])]}{inner.get(match[2], match[2])}.{match[3]}"] = tensor
        else:
            part, _, key = name.partition(".")
            found[f"{OUTER.get(part, part)}.{key}"] = tensor
    return found
