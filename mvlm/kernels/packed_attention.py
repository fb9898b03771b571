"""Attention within each of many texts that lie one after another, without padding between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.kernels.attention import attention
from mvlm.kernels.dispatch import Implementation, Op
from mvlm.kernels.probes import cuda


@dataclass(frozen=True)
class Packed:
    """How texts lie in T tokens: `copies` batches of B texts of equal lengths, each followed by its filling.

    Attributes:
        token_T: int64, of one copy: the rows of BL; BL for filling.
        starts: int32, of all copies: where each text begins, with the fillings as texts, and the end of the last.
        valid_BL: bool, False = padding.
        row_X: int64, of the tokens of all copies: their rows of copies x BL; filling has the row after the last.
        read_X: the same, but filling has the last row.
        mask_X11L: bool, the keys that each text's tokens see, of all copies.
    """

    token_T: Tensor
    starts: Tensor
    valid_BL: Tensor
    copies: int
    row_X: Tensor
    read_X: Tensor
    mask_X11L: Tensor

    @classmethod
    def of(cls, token_T: Tensor, starts: Tensor, valid_BL: Tensor, copies: int) -> Packed:
        """Args: as the attributes of these names; the rest is computed, once for all layers."""
        rows = valid_BL.numel()
        places = [token_T + copy * rows for copy in range(copies)]
        row_X = torch.where(token_T.repeat(copies) == rows, rows * copies, torch.cat(places))
        mask_X11L = valid_BL.repeat(copies, 1)[:, None, None]
        return cls(token_T, starts, valid_BL, copies, row_X, row_X.clamp(max=rows * copies - 1), mask_X11L)

    def pack(self, text_BL: Tensor) -> Tensor:
        """... x B x L -> ... x T; any number as filling."""
        filled = F.pad(text_BL.flatten(-2), (0, 1))
        return filled[..., self.token_T]

    def unpack(self, tokens_NXR: Tensor) -> Tensor:
        """N x (copies T) x ... -> N x (copies B) x L x ..., padding 0."""
        count, _, *rest = tokens_NXR.shape
        batch, length = self.valid_BL.shape
        rows = self.copies * batch * length
        padded = tokens_NXR.new_zeros(count, rows + 1, *rest).index_copy(1, self.row_X, tokens_NXR)
        return padded[:, :rows].unflatten(1, (-1, length))

    def repack(self, tokens_BLR: Tensor) -> Tensor:
        """The inverse of `unpack`, of one such tensor; filling repeats the last row."""
        return tokens_BLR.flatten(0, 1).index_select(0, self.read_X)


def _varlen(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, packed: Packed, dropout: float = 0.0) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    tokens = len(packed.token_T)
    longest = max(packed.valid_BL.shape[1], tokens // 8)  # filling is shorter than an eighth
    attended = varlen_attn(query_THd, key_THd, value_THd, packed.starts, packed.starts, longest, longest)
    assert isinstance(attended, Tensor)  # nothing else was asked for
    return attended


def _why_not_varlen() -> str | None:
    if reason := cuda():
        return reason
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def _varlen_takes(
    query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, packed: Packed, dropout: float = 0.0
) -> str | None:
    if query_THd.device.type not in ("cuda", "meta"):  # "meta" stands for it when work is counted
        return "not on CUDA"
    if query_THd.dtype not in (torch.bfloat16, torch.float16):
        return f"{query_THd.dtype} is neither bf16 nor fp16"
    return "it has no dropout" if dropout else None


def _padded(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, packed: Packed, dropout: float = 0.0) -> Tensor:
    padded_3BLHd = packed.unpack(torch.stack([query_THd, key_THd, value_THd]))
    query, key, value = padded_3BLHd.transpose(2, 3).unbind()
    return packed.repack(attention(query, key, value, packed.mask_X11L, dropout).transpose(1, 2))


PACKED_ATTENTION = Op(
    "packed_attention",
    Implementation("varlen", _varlen, _why_not_varlen, _varlen_takes),
    Implementation("padded", _padded),
)
