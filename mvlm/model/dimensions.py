"""The sizes of a model that its cost follows from.

They are read from its modules' shapes alone: a model built on torch's meta device, which takes no memory, will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mvlm.model.maskvlm import MaskVLM


@dataclass(frozen=True)
class Tower:
    """A stack of transformer blocks over one modality.

    Attributes:
        depth: blocks.
        tokens_extra: tokens a sequence has beyond its patches or words, such as CLS and registers of a ViT.
        matrices: elements of all weight matrices that each token is multiplied by, over the whole stack.
    """

    width: int
    depth: int
    heads: int
    tokens_extra: int
    matrices: int


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a MaskVLM; N, Q, V, E as in mvlm/batch.py."""

    vision: Tower
    text: Tower
    patches: int  # N
    patch_values: int  # Q
    cross_depth: int
    decoder_depth: int
    cross_heads: int
    cross_ratio: int  # inner width of a cross block's feed-forward, in widths
    vocabulary: int  # V
    contrastive_width: int  # E


def dimensions(model: MaskVLM) -> Dimensions:
    """The sizes of `model`, which may lie on the meta device."""
    vit, settings = model.vision.vit, model.text.settings
    rows, columns = model.grid
    vision = Tower(
        width=model.vision.width,
        depth=len(vit.blocks),
        heads=vit.blocks[0].attn.num_heads,
        tokens_extra=model.vision.prefix,
        matrices=matrix_elements(vit.blocks),
    )
    text = Tower(
        width=model.text.width,
        depth=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        tokens_extra=0,
        matrices=matrix_elements(model.text.model),
    )
    blocks: Any = model.cross_text.blocks
    inner = blocks[0].feed_forward[0]
    return Dimensions(
        vision=vision,
        text=text,
        patches=rows * columns,
        patch_values=model.image_decoder.pixels.out_features,
        cross_depth=len(blocks),
        decoder_depth=len(model.image_decoder.blocks.blocks),
        cross_heads=blocks[0].cross_attention.heads,
        cross_ratio=inner.out_features // inner.in_features,
        vocabulary=model.word_head.classifier.out_features,
        contrastive_width=model.image_projection.linear.out_features,
    )


def matrix_elements(module: nn.Module) -> int:
    """Weight elements of all linear layers; embeddings, which are looked up, are none of them."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
