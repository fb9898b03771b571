"""Text encoder: any BERT-like transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import sdpa_mask

from mvlm.batch import Packing
from mvlm.kernels.attention import attention
from mvlm.kernels.packed_attention import PACKED_ATTENTION, Packed

PACKABLE = {
    "albert": 0,
    "bert": 0,
    "camembert": 1,
    "data2vec-text": 1,
    "distilbert": 0,
    "electra": 0,
    "ernie": 0,
    "roberta": 1,
    "roberta-prelayernorm": 1,
    "xlm-roberta": 1,
    "xlm-roberta-xl": 1,
}
"""Encoders whose tokens see their neighbours through plain attention alone, so that texts go through without padding: 1
if a text's positions begin after the padding token's number, 0 if at 0."""


class TextEncoder(nn.Module):
    """Token ids to token features, of which the first stands for the sentence.

    Args:
        model: an encoder of transformers.
        pool: "cls", the first token's own feature, or "mean", the mean of all tokens in its place.

    Attributes:
        first_position: the row of the position embeddings that a text's first token has.
        chained: each block takes the result of the one before it, and otherwise what that one took.
    """

    def __init__(self, model: Any, pool: str = "cls") -> None:
        super().__init__()
        self.model, self.pool = model, pool
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # would get no gradient
        self.settings: PretrainedConfig = model.config
        self.width: int = self.settings.hidden_size
        self.embedding: nn.Embedding = model.get_input_embeddings()
        self.packable = self.settings.model_type in PACKABLE
        self.chained = self.packable and self.settings.model_type != "albert"  # which runs a block several times
        self.first_position = PACKABLE.get(self.settings.model_type, 0) * ((self.settings.pad_token_id or 0) + 1)
        if self.packable:
            self.settings._attn_implementation = _OURS  # for good: blocks are also recomputed outside of `forward`

    def forward(self, text_BL: Tensor, valid_BL: Tensor, packing: Packing | None = None) -> Tensor:
        """int64 BL, bool BL (False = padding) -> BLD. Several texts of the same lengths: XBL -> XBLD.

        Args:
            packing: of `valid_BL`; with it no padding is computed, and its features are 0.
        """
        texts_XBL = text_BL if text_BL.ndim == 3 else text_BL[None]
        if packing is not None and self.packable:
            tokens_XBLD = self._packed(texts_XBL, valid_BL, packing)
        else:
            mask = valid_BL.long().repeat(len(texts_XBL), 1)
            # If RoBERTa counted positions itself, a padding token written out in a caption would shift them.
            place_L = torch.arange(mask.shape[1], device=mask.device) + self.first_position
            positions = {"position_ids": place_L * mask} if self.packable else {}
            tokens = self.model(input_ids=texts_XBL.flatten(0, 1), attention_mask=mask, **positions).last_hidden_state
            tokens_XBLD = tokens.unflatten(0, texts_XBL.shape[:2])
        if self.pool == "mean":
            is_first_L1 = (torch.arange(valid_BL.shape[1], device=valid_BL.device) == 0)[:, None]
            tokens_XBLD = torch.where(is_first_L1, _mean(tokens_XBLD, valid_BL), tokens_XBLD)
        return tokens_XBLD if text_BL.ndim == 3 else tokens_XBLD[0]

    def _packed(self, texts_XBL: Tensor, valid_BL: Tensor, packing: Packing) -> Tensor:
        copies, tokens = len(texts_XBL), len(packing.token_T)
        starts = [packing.starts[1:] + copy * tokens for copy in range(copies)]
        packed = Packed.of(packing.token_T, torch.cat([packing.starts[:1], *starts]), valid_BL, copies)
        position_T = (packing.token_T % valid_BL.shape[1] + self.first_position).repeat(copies)
        # Attention reads `packed`; but without a mask of four dimensions, transformers looks for packed texts itself,
        # waits for the device, and makes a mask of T x T.
        given = {"attention_mask": packed.mask_X11L, "position_ids": position_T[None], "packed": packed}
        output = self.model(input_ids=packed.pack(texts_XBL).view(1, -1), **given)
        return packed.unpack(output.last_hidden_state).squeeze(0).unflatten(0, texts_XBL.shape[:2])


def _mean(tokens_XBLD: Tensor, valid_BL: Tensor) -> Tensor:
    """The mean of a text's tokens that are not padding -> XB1D."""
    sum_XBD = torch.einsum("xbld,bl->xbd", tokens_XBLD, valid_BL.to(tokens_XBLD.dtype))
    return (sum_XBD / valid_BL.sum(dim=1, keepdim=True)).unsqueeze(2)


_OURS = "mvlm"


def _attend(
    module: nn.Module,
    query_BHLd: Tensor,
    key_BHLd: Tensor,
    value_BHLd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Packed | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature that transformers asks for; all packed texts are one row."""
    if packed is None:
        return attention(query_BHLd, key_BHLd, value_BHLd, attention_mask, dropout).transpose(1, 2), None
    # Not x[0], whose gradient is copied into a tensor of zeros.
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query_BHLd, key_BHLd, value_BHLd))
    return PACKED_ATTENTION(query, key, value, packed, dropout)[None], None


AttentionInterface.register(_OURS, _attend)
AttentionMaskInterface.register(_OURS, sdpa_mask)  # bool, True = may be seen; none if there is no padding
