"""Attention within each of many texts that lie one after another, without padding between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.kernels.attention import attention
from mvlm.kernels.dispatch import Implementation, Op
from mvlm.kernels.probes import cuda, torch_version


@dataclass(frozen=True)
class Packed:
    """How texts lie in T tokens: `copies` batches of B texts of equal lengths, each followed by its filling."""

    token_T: Tensor  # int64, of one copy: the rows of BL; BL for filling
    starts: Tensor  # int32, of all copies: where each text begins, with the fillings as texts, and the end of the last
    valid_BL: Tensor  # bool, False = padding
    copies: int

    def pack(self, text_BL: Tensor) -> Tensor:
        """... x B x L -> ... x T; any number as filling."""
        filled = F.pad(text_BL.flatten(-2), (0, 1))
        return filled[..., self.token_T]

    def unpack(self, tokens_TX: Tensor) -> Tensor:
        """(copies T) x ... -> (copies B) x L x ..., padding 0."""
        rest = tokens_TX.shape[1:]
        rows = tokens_TX.new_zeros(self.copies, self.valid_BL.numel() + 1, *rest)
        rows = rows.index_copy(1, self.token_T, tokens_TX.unflatten(0, (self.copies, -1)))
        return rows[:, :-1].unflatten(1, self.valid_BL.shape).flatten(0, 1)

    def repack(self, tokens_BLX: Tensor) -> Tensor:
        """The inverse of `unpack`; filling 0."""
        rows = tokens_BLX.unflatten(0, (self.copies, -1)).flatten(1, 2)
        rows = torch.cat([rows, rows.new_zeros(self.copies, 1, *rows.shape[2:])], dim=1)
        return rows[:, self.token_T].flatten(0, 1)


def _varlen(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, packed: Packed, dropout: float = 0.0) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    tokens = len(packed.token_T)
    longest = max(packed.valid_BL.shape[1], tokens // 8)  # filling is shorter than an eighth
    attended = varlen_attn(query_THd, key_THd, value_THd, packed.starts, packed.starts, longest, longest)
    assert isinstance(attended, Tensor)  # nothing beside it was asked for
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
    if query_THd.device.type not in ("cuda", "meta"):  # which stands for it where work is counted
        return "not on CUDA"
    if query_THd.dtype not in (torch.bfloat16, torch.float16):
        return f"{query_THd.dtype} is neither bf16 nor fp16"
    return "it has no dropout" if dropout else None


def _padded(query_THd: Tensor, key_THd: Tensor, value_THd: Tensor, packed: Packed, dropout: float = 0.0) -> Tensor:
    query, key, value = (packed.unpack(x).transpose(1, 2) for x in (query_THd, key_THd, value_THd))
    mask_B11L = packed.valid_BL.repeat(packed.copies, 1)[:, None, None]
    attended = attention(query, key, value, mask_B11L, dropout)
    return packed.repack(attended.transpose(1, 2))


PACKED_ATTENTION = Op(
    "packed_attention",
    Implementation("varlen", _varlen, _why_not_varlen, _varlen_takes, version=torch_version),
    Implementation("padded", _padded, version=torch_version),
)
