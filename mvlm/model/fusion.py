"""Cross-modality transformer: self-attention, cross-attention to the other modality, feed-forward (paper, 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvlm.config.schema import Model
from mvlm.errors import UserError
from mvlm.kernels.attention import attention, parts
from mvlm.kernels.fusion import Layout, Segment, split
from mvlm.kernels.layer_norm import LayerNorm


class Attention(nn.Module):
    """Multi-head attention of queries to a context that may have another width."""

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries_BTD: Tensor, context_BUD: Tensor, segments: list[Segment]) -> Tensor:
        """BTD attending to BUD -> BTD; the segments divide the queries T, in order."""
        queries, keys = [segment.queries for segment in segments], [segment.keys for segment in segments]
        query = split(self.query(queries_BTD), queries)
        key, value = (split(part, keys) for part in parts(self.key_value(context_BUD), 2))
        attended = [self._attend(*each) for each in zip(query, key, value, segments, strict=True)]
        return self.out(attended[0] if len(attended) == 1 else torch.cat(attended, dim=1))

    def weights(self, queries_BTD: Tensor, context_BUD: Tensor) -> Tensor:
        """How each head spreads its attention over a context without padding, to be looked at: B x heads x TU."""
        query, key = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(queries_BTD), self.key_value(context_BUD).chunk(2, dim=-1)[0])
        )
        return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)

    def _attend(self, query_BTD: Tensor, key_BUD: Tensor, value_BUD: Tensor, segment: Segment) -> Tensor:
        query, key, value = (
            x.reshape(len(query_BTD) * segment.count, -1, self.heads, query_BTD.shape[-1] // self.heads).transpose(1, 2)
            for x in (query_BTD, *(x if segment.rows_B is None else x[segment.rows_B] for x in (key_BUD, value_BUD)))
        )
        mask = None if segment.valid is None else segment.valid.reshape(len(key), 1, 1, -1)
        dropout = self.dropout if self.training else 0.0
        attended = attention(query, key, value, mask, dropout)
        return attended.transpose(1, 2).reshape(query_BTD.shape)


class FeedForward(nn.Sequential):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))


class CrossBlock(nn.Module):
    """One block, with the norms before or after each residual branch.

    Args:
        first: it takes the sources of a layout's sequences; `last`: it gives what is kept of them.
    """

    def __init__(self, width: int, context_width: int, config: Model, first: bool, last: bool) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.pre_norm = config.cross_norm == "pre"
        self.self_attention = Attention(width, width, config.cross_heads, config.dropout)
        self.cross_attention = Attention(width, context_width, config.cross_heads, config.dropout)
        self.feed_forward = FeedForward(width, config.dropout)
        self.self_norm, self.cross_norm, self.feed_norm = (LayerNorm(width) for _ in range(3))

    def forward(self, x_BTD: Tensor, context_BUD: Tensor, layout: Layout) -> Tensor:
        """The layout's sequences -> the same."""
        first, last = self.first, self.last
        self_segments, cross_segments = layout.self_segments(first, last), layout.cross_segments(last)
        normed = self.self_norm(x_BTD) if self.pre_norm else x_BTD
        queries = normed
        if last:
            x_BTD, queries = layout.keep(x_BTD), layout.keep(normed)
        attended = self.self_attention(queries, normed, self_segments)
        if not self.pre_norm:
            _, x_BTD = self.self_norm(x_BTD, attended)
            if first:
                x_BTD = layout.spread(x_BTD, last)
            _, x_BTD = self.cross_norm(x_BTD, self.cross_attention(x_BTD, context_BUD, cross_segments))
            return self.feed_norm(x_BTD, self.feed_forward(x_BTD))[1]
        if first:  # sequences of one source separate between the sum and its norm
            x_BTD = layout.spread(x_BTD + attended, last)
            normed = self.cross_norm(x_BTD)
        else:
            x_BTD, normed = self.cross_norm(x_BTD, attended)
        x_BTD, normed = self.feed_norm(x_BTD, self.cross_attention(normed, context_BUD, cross_segments))
        return x_BTD + self.feed_forward(normed)


class CrossEncoder(nn.Module):
    """A stack of blocks in which one modality attends to the other."""

    chained = True
    """Each block takes the result of the one before it, and otherwise what that one took."""

    def __init__(self, width: int, context_width: int, depth: int, config: Model) -> None:
        super().__init__()
        if width % config.cross_heads:
            raise UserError(
                f"model.cross_heads {config.cross_heads} does not divide the encoder width {width}: choose a divisor."
            )
        places = [(number == 0, number == depth - 1) for number in range(depth)]
        self.blocks = nn.ModuleList(CrossBlock(width, context_width, config, *place) for place in places)
        self.norm = nn.LayerNorm(width) if config.cross_norm == "pre" else nn.Identity()
        self.apply(lambda module: init_linear(module, config.cross_init_std))

    def forward(
        self,
        x_BLD: Tensor,
        context_BUD: Tensor,
        valid_BL: Tensor | None = None,
        context_valid_BU: Tensor | None = None,
    ) -> Tensor:
        """BLD attending to BUD -> BLD; `valid` masks padding of either side."""
        return self.run(x_BLD, context_BUD, Layout(x_BLD.shape[1], 0, valid_BL, context_valid_BU))

    def run(self, x_BTD: Tensor, context_BUD: Tensor, layout: Layout) -> Tensor:
        """The sources of all sequences of a layout -> what is kept of them."""
        for block in self.blocks:
            x_BTD = block(x_BTD, context_BUD, layout)
        return self.norm(x_BTD)


def init_linear(module: nn.Module, std: float) -> None:
    """The random initialisation of new linear layers: truncated normal weights, zero biases (BERT)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
