"""Other people's steps at similar sizes, and a step like ALBEF's on our own layers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import FlavaConfig, FlavaForPreTraining

from benchmarks.step.albef_like import AlbefLike
from benchmarks.step.albef_own import build_albef
from benchmarks.step.sizes import Size, build, make_batch
from benchmarks.step.variants import Prepared
from mvlm.batch import IGNORE

Prepare = Callable[[Size, torch.device, torch.dtype], Prepared]
ALBEF_CHECKOUT = "MVLM_ALBEF"
"""The environment variable that tells a trial's process where ALBEF's own code is."""
CODEBOOK = 8192  # visual words of FLAVA's image tokenizer


def vit_alone(size: Size, device: torch.device, dtype: torch.dtype) -> Prepared:
    """timm's ViT on images that are already normalised, with the mean of its features as the loss."""
    vit = build(size).vision.vit
    vit.patch_embed = vit.patch_embed.patch_embed
    side = size.config.model.image_size
    image_BCHW = torch.randn(size.pairs, 3, side, side, device=device, dtype=dtype)
    return Prepared(vit.to(device, dtype), lambda: vit(image_BCHW).float().mean())


def albef_like(size: Size, device: torch.device, dtype: torch.dtype) -> Prepared:
    maskvlm = build(size)
    model = AlbefLike(maskvlm).to(device, dtype)
    batch = make_batch(size, maskvlm.grid).to(device)
    return Prepared(model, lambda: sum(model(batch).values()))


def flava(size: Size, device: torch.device, dtype: torch.dtype) -> Prepared:
    """transformers' FLAVA with all its losses, and random visual words in place of its image tokenizer's."""
    maskvlm = build(size)
    text, model = maskvlm.text.settings, size.config.model
    tower = {
        "hidden_size": text.hidden_size,
        "intermediate_size": 4 * text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
    }
    side, patch = size.config.model.image_size, maskvlm.vision.patch
    config = FlavaConfig(
        image_config=tower
        | {"num_hidden_layers": len(maskvlm.vision.vit.blocks), "image_size": side, "patch_size": patch},
        text_config=tower | {"num_hidden_layers": text.num_hidden_layers, "vocab_size": size.vocabulary},
        multimodal_config=tower | {"num_hidden_layers": model.cross_depth},
        hidden_size=text.hidden_size,
        projection_dim=model.contrastive_width,
        init_codebook=False,
    )
    flava = FlavaForPreTraining(config).to(device, dtype)
    batch = make_batch(size, maskvlm.grid).to(device)
    words_BN = torch.randint(0, CODEBOOK, batch.patch_mask_BN.shape, device=device)
    arguments: dict[str, Any] = {
        "input_ids": batch.text_BL,
        "input_ids_masked": batch.masked_text_BL,
        "attention_mask": batch.valid_BL.long(),
        "pixel_values": maskvlm.normalize(batch.image_BCHW).to(dtype),
        "bool_masked_pos": batch.patch_mask_BN,
        "mlm_labels": batch.target_BL,
        "mim_labels": words_BN.masked_fill(~batch.patch_mask_BN, IGNORE),
        "itm_labels": torch.arange(len(batch), device=device) % 2,
    }
    return Prepared(flava, lambda: flava(**arguments, return_loss=True).loss)


def albef(size: Size, device: torch.device, dtype: torch.dtype) -> Prepared:
    """ALBEF's own code, including its momentum encoders, from the checkout that the environment names."""
    maskvlm = build(size)
    checkout = Path(os.environ[ALBEF_CHECKOUT])
    model = build_albef(checkout, maskvlm, size.config.model, size.vocabulary, size.pairs).to(device, dtype)
    batch = make_batch(size, maskvlm.grid).to(device)
    image_BCHW = maskvlm.normalize(batch.image_BCHW).to(dtype)
    text = SimpleNamespace(input_ids=batch.text_BL, attention_mask=batch.valid_BL.long())
    return Prepared(model, lambda: sum(model(image_BCHW, text, alpha=0.4)))


PEERS: dict[str, tuple[str, Prepare]] = {
    "vit": ("timm ViT alone", vit_alone),
    "albef_like": ("a step like ALBEF's on our layers", albef_like),
    "albef": ("ALBEF, its own code", albef),
    "flava": ("FLAVA, transformers (no image tokenizer, no hard negatives)", flava),
}
