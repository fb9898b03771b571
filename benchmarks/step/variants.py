"""The steps that are measured: MaskVLM's from the naive to the fast one, each built in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.step.reference import naive_losses
from benchmarks.step.sizes import Size, build, make_batch


@dataclass(frozen=True)
class Prepared:
    """A step ready to be run: its model, and its forward pass on a batch that is on the device already."""

    model: nn.Module
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class Rung:
    """One way to compute MaskVLM's step.

    Attributes:
        padding: tokens to which the text is padded; 0 = the batch's longest.
        fused_attention: attention is torch's own operator, not matrix product, softmax, matrix product.
        packed, masked: as in `naive_losses`.
        pruned: `MaskVLM.forward`, which is packed and masked too.
    """

    title: str
    padding: int = 0
    fused_attention: bool = True
    packed: bool = True
    masked: bool = True
    pruned: bool = False

    def prepare(self, size: Size, device: torch.device, dtype: torch.dtype) -> Prepared:
        if not self.fused_attention:
            F.scaled_dot_product_attention = plain_attention
        model = build(size).to(device, dtype)
        batch = make_batch(size, model.grid).to(device)

        def loss() -> Tensor:
            if self.pruned:
                return sum(model(batch).values())
            return sum(naive_losses(model, batch, self.padding, self.packed, self.masked).values())

        return Prepared(model, loss)


def _naive(title: str, padding: int, fused_attention: bool) -> Rung:
    return Rung(title, padding, fused_attention, packed=False, masked=False)


LADDER = {
    "naive": _naive("naive: text padded to 50, heads everywhere, matmul-softmax-matmul", 50, False),
    "sdpa": _naive("+ torch's attention operator", 50, True),
    "packed": Rung("+ text as long as the batch's longest, packed in its encoder", masked=False),
    "masked_heads": Rung("+ heads at hidden positions only"),
    "pruned": Rung("+ exact pruning (`MaskVLM.forward`)", pruned=True),
}
"""Each rung adds one thing to the rung before it."""

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
