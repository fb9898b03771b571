"""Cross-modality transformer: self-attention, cross-attention to the other modality, feed-forward (paper, 3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mvlm.config import Model
from mvlm.errors import UserError


class Attention(nn.Module):
    """Multi-head attention of queries to a context that may have another width."""

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries_BLD: Tensor, context_BTD: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Attend from L queries to those of T context tokens that are valid -> BLD."""
        batch, _, width = queries_BLD.shape
        shape = (batch, -1, self.heads, width // self.heads)
        query = self.query(queries_BLD).view(shape).transpose(1, 2)
        key, value = (x.reshape(shape).transpose(1, 2) for x in self.key_value(context_BTD).chunk(2, dim=-1))
        mask = None if valid_BT is None else valid_BT[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.out(attended.transpose(1, 2).reshape(queries_BLD.shape))


class FeedForward(nn.Sequential):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))


class CrossBlock(nn.Module):
    """One block, with the norms before or after each residual branch."""

    def __init__(self, width: int, context_width: int, config: Model) -> None:
        super().__init__()
        self.pre_norm = config.cross_norm == "pre"
        self.self_attention = Attention(width, width, config.cross_heads, config.dropout)
        self.cross_attention = Attention(width, context_width, config.cross_heads, config.dropout)
        self.feed_forward = FeedForward(width, config.dropout)
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x_BLD: Tensor, context_BTD: Tensor, valid_BL: Tensor | None, context_valid_BT: Tensor | None
    ) -> Tensor:
        if self.pre_norm:
            normed = self.self_norm(x_BLD)
            x_BLD = x_BLD + self.self_attention(normed, normed, valid_BL)
            x_BLD = x_BLD + self.cross_attention(self.cross_norm(x_BLD), context_BTD, context_valid_BT)
            return x_BLD + self.feed_forward(self.feed_norm(x_BLD))
        x_BLD = self.self_norm(x_BLD + self.self_attention(x_BLD, x_BLD, valid_BL))
        x_BLD = self.cross_norm(x_BLD + self.cross_attention(x_BLD, context_BTD, context_valid_BT))
        return self.feed_norm(x_BLD + self.feed_forward(x_BLD))


class CrossEncoder(nn.Module):
    """A stack of blocks in which one modality reads the other."""

    def __init__(self, width: int, context_width: int, depth: int, config: Model) -> None:
        super().__init__()
        if width % config.cross_heads:
            raise UserError(
                f"model.cross_heads {config.cross_heads} does not divide the encoder width {width}: choose a divisor."
            )
        self.blocks = nn.ModuleList(CrossBlock(width, context_width, config) for _ in range(depth))
        self.norm = nn.LayerNorm(width) if config.cross_norm == "pre" else nn.Identity()
        self.apply(lambda module: init_linear(module, config.cross_init_std))

    def forward(
        self,
        x_BLD: Tensor,
        context_BTD: Tensor,
        valid_BL: Tensor | None = None,
        context_valid_BT: Tensor | None = None,
    ) -> Tensor:
        """BLD reading BTD -> BLD; `valid` masks padding of either side (None = no padding)."""
        for block in self.blocks:
            x_BLD = block(x_BLD, context_BTD, valid_BL, context_valid_BT)
        return self.norm(x_BLD)


def init_linear(module: nn.Module, std: float) -> None:
    """The random initialisation of new linear layers: truncated normal weights, zero biases (BERT)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
