"""The encoders in external checkpoints, under the names that timm and transformers give their tensors.

Recognised by tensors' names alone: timm and transformers; MAE (facebookresearch/mae, models_mae.py); SimMIM
(microsoft/SimMIM, models/simmim.py); ALBEF (salesforce/ALBEF, models/model_pretrain.py); BLIP (salesforce/BLIP,
models/blip_pretrain.py).
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mvlm.errors import UserError

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the three colours."""

IMAGENET: Pixels = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP: Pixels = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ExternalCheckpoint:
    """An encoder in an external checkpoint.

    Attributes:
        family: whose it is, for messages.
        tensors: all that belong to the encoder, by the names that timm or transformers gives them, if any.
        others: how many other tensors the checkpoint has.
        pixels: what the images it was trained on were normalised with, if that is known.
        mask_token: D, if it replaced a masked patch's embedding before positions were added, as here.
        layers: how many of a text encoder's layers read text alone; None = all.
    """

    family: str
    tensors: dict[str, Tensor]
    others: int
    pixels: Pixels | None = None
    mask_token: Tensor | None = None
    layers: int | None = None


def find_image_encoder(tensors: dict[str, Tensor]) -> ExternalCheckpoint | None:
    """The image encoder under timm's names, if there is one."""
    if ours := find_own_image_encoder(tensors):
        return ours
    if "visual_encoder.patch_embed.proj.weight" in tensors:
        own = _below(tensors, "visual_encoder.")
        return ExternalCheckpoint(_fusion_family(tensors), own, len(tensors) - len(own), CLIP)
    if "encoder.patch_embed.proj.weight" in tensors:
        own = _below(tensors, "encoder.")
        token = own.pop("mask_token", None)
        others = len(tensors) - len(own) - (token is not None)
        return ExternalCheckpoint("SimMIM", own, others, IMAGENET, None if token is None else token.flatten())
    if "patch_embed.proj.weight" in tensors:
        is_mae = "decoder_pos_embed" in tensors
        own = {name: tensor for name, tensor in tensors.items() if not (is_mae and _of_mae_decoder(name))}
        family, pixels = ("MAE", IMAGENET) if is_mae else ("timm", None)
        return ExternalCheckpoint(family, own, len(tensors) - len(own), pixels)
    for prefix in ("", "vit.", "deit."):
        if f"{prefix}embeddings.patch_embeddings.projection.weight" in tensors:
            is_mae = "decoder.decoder_pos_embed" in tensors
            own = _from_transformers_vit(_below(tensors, prefix))
            parts = tuple(f"{prefix}{part}." for part in ("embeddings", "encoder", "layers", "layernorm"))
            count = sum(name.startswith(parts) for name in tensors)
            return ExternalCheckpoint("transformers", own, len(tensors) - count, IMAGENET if is_mae else None)
    return None


def find_own_image_encoder(tensors: dict[str, Tensor]) -> ExternalCheckpoint | None:
    """The image encoder of a run of ours, of whatever kind."""
    if not (own := _below(tensors, "vision.vit.")):
        return None
    own = {as_timm_has_it(name): tensor for name, tensor in own.items()}
    token = own.pop("patch_embed.mask_token", None)
    return ExternalCheckpoint("mvlm", own, len(tensors) - len(own) - (token is not None), mask_token=token)


def as_timm_has_it(name: str) -> str:
    """The name of a parameter of our image encoder without the module that wraps timm's patch embedding."""
    return name.replace("patch_embed.patch_embed.", "patch_embed.")


def find_text_encoder(tensors: dict[str, Tensor], prefix: str, where: str) -> ExternalCheckpoint | None:
    """The text encoder under transformers' names, if there is one.

    Args:
        prefix: under which transformers keeps such an encoder in larger models, such as "bert".
        where: the checkpoint, for messages.

    Raises:
        UserError: it is of another kind.
    """
    fused = "visual_encoder.patch_embed.proj.weight" in tensors
    inside = _below(tensors, "text_encoder.") if fused else _below(tensors, "text.model.") or tensors
    found = [name.removesuffix(WORD_EMBEDDINGS) for name in inside if name.endswith(WORD_EMBEDDINGS)]
    if not found:
        return None
    outer = min(found, key=len)
    kind = "bert" if fused else outer.rstrip(".").rpartition(".")[2]
    if kind in CONFIG_MAPPING and kind != prefix:
        raise UserError(
            f"{where} holds a text encoder of the kind {kind!r} and model.text is a {prefix!r}: set model.text to "
            f"{kind!r} or to a model of that kind, and data.tokenizer to its tokenizer."
        )
    own = {_modern(name): tensor for name, tensor in _below(inside, outer).items()}
    own = {name: tensor for name, tensor in own.items() if not name.startswith(("cls.", "lm_head.", "pooler."))}
    crossing = [int(m[1]) for name in own if (m := re.match(r"encoder\.layer\.(\d+)\.crossattention\.", name))]
    layers = min(crossing) if crossing and min(crossing) > 0 else None
    family = _fusion_family(tensors) if fused else "transformers" if inside is tensors else "mvlm"
    return ExternalCheckpoint(family, own, len(tensors) - len(own), layers=layers)


WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _fusion_family(tensors: dict[str, Tensor]) -> str:
    """ALBEF's text encoder is the lower half of a BERT; BLIP's reads images in every layer, which can be left out."""
    everywhere = any(".layer.0.crossattention." in name for name in tensors)
    return "BLIP" if everywhere else "ALBEF"


def _of_mae_decoder(name: str) -> bool:
    return name.startswith("decoder_") or name == "mask_token"


def _modern(name: str) -> str:
    """Rename a norm's weight and bias, which BERT's checkpoints of 2018 call gamma and beta."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + OLD_NORM[m[1]], name)


OLD_NORM = {"gamma": "weight", "beta": "bias"}


def with_layout_of(own: dict[str, Tensor], wanted: Set[str]) -> dict[str, Tensor]:
    """Convert blocks in BEiT's layout, which SimMIM has too, to that of timm's plain ViT, if that is `wanted`."""
    if not any(name.endswith("attn.q_bias") for name in own) or any(name.endswith("attn.q_bias") for name in wanted):
        return own
    renamed: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.endswith("attn.q_bias"):
            value = own[name.replace("q_bias", "v_bias")]
            renamed[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif not name.endswith("attn.v_bias"):
            renamed[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)] = tensor
    return renamed


VIT = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.distillation_token": "dist_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
}
"""transformers' names in a ViT (ViTModel, ViTMAEModel, DeiTModel) and timm's, except for queries, keys and values.

transformers 5 names a block's layers otherwise in memory, as `torch.save` stores them, but not in its own files."""


def _from_transformers_vit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        block, inner = "", name
        if match := re.fullmatch(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)", name):
            block, inner = f"blocks.{match[1]}.", match[2]
        if match := re.fullmatch(r"attention\.(?:attention\.query|q_proj)\.(weight|bias)", inner):
            names = ("q_proj", "k_proj", "v_proj") if "q_proj" in inner else ("query", "key", "value")
            thirds = [name.replace(names[0], part) for part in names]
            if tensors.keys() >= set(thirds):  # BEiT has no bias of keys, and is refused for lacking it
                renamed[f"{block}attn.qkv.{match[1]}"] = torch.cat([tensors[third] for third in thirds])
        elif inner in VIT:
            renamed[VIT[inner]] = tensor
        elif (stem := inner.rpartition(".")[0]) in VIT:
            renamed[f"{block}{VIT[stem]}.{inner.rpartition('.')[2]}"] = tensor
    return renamed
