"""The steps that are measured: MaskVLM's from the naive to the fast one, each built in a separate process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.step.sizes import Size, build, make_batch
from mvlm.batch import IGNORE, Batch, MaskedPlaces
from mvlm.config.schema import Config, Kernels
from mvlm.kernels.ops import OPS
from mvlm.model.maskvlm import MaskVLM

PASSES = ("fusion", "views")
"""The operations in which a pruned step differs from a plain one; the others are layers and losses."""


@dataclass(frozen=True)
class Prepared:
    """A step ready to run: its model, and its forward pass on a batch that is already on the device."""

    model: nn.Module
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class Rung:
    """One way to compute MaskVLM's step.

    Attributes:
        padding: tokens to which the text is padded; 0 = the batch's longest.
        fused_attention: attention is torch's own operator, not matrix product, softmax, matrix product.
        packed: the text encoder computes no padding.
        masked: words are predicted only where they are masked.
        pruned: a modality's two views go through its encoder in one pass, and a pair's streams in one pruned pass.
        compiled: blocks are compiled by torch.compile, in runs.
        kernels: use the implementations that a run chooses, and keep freed memory; otherwise torch's plain ones.
        dropped: the image encoder does not see masked patches: another model (`objectives.image_masking`).
    """

    title: str
    padding: int = 0
    fused_attention: bool = True
    packed: bool = True
    masked: bool = True
    pruned: bool = False
    compiled: bool = False
    kernels: bool = False
    dropped: bool = False

    def prepare(self, size: Size, device: torch.device, dtype: torch.dtype) -> Prepared:
        if not self.fused_attention:
            F.scaled_dot_product_attention = plain_attention
        if self.dropped:
            size = replace(size, overrides=(*size.overrides, "objectives.image_masking=drop"))
        plain = {name for name in OPS if not (self.pruned if name in PASSES else self.kernels)}
        kernels = Kernels(**{name: OPS[name].implementations[-1].name for name in plain})
        config = replace(size.config, kernels=kernels, train=replace(size.config.train, compile=self.compiled))
        model = build(size).to(device, dtype)
        batch = make_batch(size, model.grid).to(device)
        speed_up(model, config, self.kernels)
        model.text.packable &= self.packed
        batch = padded(batch, self.padding, model.text.settings.pad_token_id)
        if not self.masked:
            batch = replace(batch, masked=every_word(batch))
        return Prepared(model, lambda: sum(model(batch).values()))


def speed_up(model: MaskVLM, config: Config, kernels: bool) -> None:
    """Apply what a run applies, in the same order."""
    from mvlm.kernels.layers import use_kernels
    from mvlm.runtime.cpu import keep_freed_memory
    from mvlm.training.capture import capture
    from mvlm.training.compilation import compile_blocks
    from mvlm.training.kernels import settle_run
    from mvlm.training.parallelize import recompute_blocks

    settle_run(config.kernels)
    if kernels:
        keep_freed_memory()
        use_kernels(model)
    recompute_blocks(model, config.train.recompute)
    if config.train.compile:
        compile_blocks(model, stage=0)
        if config.train.compile == "captured":
            capture(model)


def padded(batch: Batch, length: int, padding: int) -> Batch:
    """The batch with its texts padded to a length by the token `padding`."""
    extra = max(0, length - batch.text_BL.shape[1])

    def pad(x_BL: Tensor, value: int) -> Tensor:
        return F.pad(x_BL, (0, extra), value=value)

    return replace(
        batch,
        text_BL=pad(batch.text_BL, padding),
        masked_text_BL=pad(batch.masked_text_BL, padding),
        valid_BL=pad(batch.valid_BL, False),
        target_BL=pad(batch.target_BL, IGNORE),
    )


def every_word(batch: Batch) -> MaskedPlaces:
    """The places of all words instead of the masked ones; words that are not masked have no target."""
    pairs, length = batch.text_BL.shape
    places = torch.arange(length, device=batch.text_BL.device)
    rows = torch.arange(pairs * length, device=places.device)
    return replace(batch.masked, token_BC=places.expand(pairs, -1), token_M=rows)


def _naive(title: str, padding: int, fused_attention: bool) -> Rung:
    return Rung(title, padding, fused_attention, packed=False, masked=False)


LADDER = {
    "naive": _naive("naive: text padded to 50, heads everywhere, matmul-softmax-matmul", 50, False),
    "sdpa": _naive("+ torch's attention operator", 50, True),
    "packed": Rung("+ text as long as the batch's longest, packed in its encoder", masked=False),
    "masked_heads": Rung("+ heads at hidden positions only"),
    "pruned": Rung("+ exact pruning (`MaskVLM.forward`)", pruned=True),
    "compiled": Rung("+ compiled blocks", pruned=True, compiled=True),
    "kernels": Rung("+ kernels, and freed memory kept: all of it", pruned=True, compiled=True, kernels=True),
}
"""Each rung adds one thing to the rung before it."""

WITHOUT = {
    "without_packing": Rung("all without packing", packed=False, pruned=True, compiled=True, kernels=True),
    "without_masked_words": Rung(
        "all, words at every position", masked=False, pruned=True, compiled=True, kernels=True
    ),
    "without_pruning": Rung("all without pruning", compiled=True, kernels=True),
    "without_compilation": Rung("all without compilation", pruned=True, kernels=True),
    "dropped": Rung(
        "all without compilation, hidden patches dropped: another model", pruned=True, kernels=True, dropped=True
    ),
}
"""Everything but one thing (without kernels that is the rung `compiled`), and the model that drops hidden patches."""

PADDED_TO_30 = {
    "naive_30": _naive("naive, text padded to 30", 30, False),
    "sdpa_30": _naive("naive, text padded to 30, torch's attention operator", 30, True),
}


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: object,
) -> Tensor:
    """What `F.scaled_dot_product_attention` computes for these models, step by step."""
    scores = query @ key.mT * (scale or query.shape[-1] ** -0.5)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value
