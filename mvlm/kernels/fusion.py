"""Runs a cross-modality encoder on the streams of every pair: each by itself, or all in one pruned pass.

Each pair has up to four sequences: the masked stream, which is to be reconstructed, and the three of the match stream:
the pair's own, a negative in its place, and the pair's own again. The first three attend to the pair's own context, the
last to a negative one. In the pruned pass their tokens follow one another in a tensor B x T x D, and nothing is
computed that nobody reads, since only CLS is read of a match and only masked places of what is reconstructed:

- own and negative sequences are the same ones in another order until they meet a context, so the first self-attention
  is computed once for all three (`first`, then `spread`);
- the last block computes only CLS of each match and only masked places of the masked stream (`kept`);
- a context's keys and values are projected once, and a negative one is a row of them (`Segment.rows_B`);
- sequences that attend to one context are the queries of one attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvlm.batch import Negative
from mvlm.kernels.dispatch import Implementation, Op


@dataclass(frozen=True)
class Stream:
    """Tokens of one modality that attend to the other.

    Attributes:
        keep_BC: the places that are wanted; None = all.
    """

    tokens_BLD: Tensor
    context_BUD: Tensor
    keep_BC: Tensor | None = None


@dataclass(frozen=True)
class MatchStream:
    """Both modalities of each pair, and what stands in for either: rows of the batch for both, or tokens for both."""

    tokens_BLD: Tensor
    context_BUD: Tensor
    negative: Negative
    context_negative: Negative

    @property
    def foreign(self) -> tuple[Tensor, Tensor] | None:
        """The tokens of negatives from outside the batch, and those of their contexts; None = all are in it."""
        tokens_BLD, context_BUD = self.negative.tokens_BLD, self.context_negative.tokens_BLD
        return None if tokens_BLD is None or context_BUD is None else (tokens_BLD, context_BUD)


def plain(
    encoder: Any,
    stream: Stream | None,
    match: MatchStream | None = None,
    valid_BL: Tensor | None = None,
    context_valid_BU: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Every sequence by itself, and all of its tokens."""
    fused_BXD = cls_B3D = None
    if stream:
        fused_BXD = encoder(stream.tokens_BLD, stream.context_BUD, valid_BL, context_valid_BU)
        fused_BXD = fused_BXD if stream.keep_BC is None else take(fused_BXD, stream.keep_BC)
    if match:
        own, context = (match.tokens_BLD, valid_BL), (match.context_BUD, context_valid_BU)
        cls_BD = []
        for (tokens_BLD, valid), (context_BUD, context_valid) in (
            (own, context),
            (_in_place_of(*own, match.negative), context),
            (own, _in_place_of(*context, match.context_negative)),
        ):
            cls_BD.append(encoder(tokens_BLD, context_BUD, valid, context_valid)[:, 0])
        cls_B3D = torch.stack(cls_BD, dim=1)
    return fused_BXD, cls_B3D


def _in_place_of(own_BLD: Tensor, valid_BL: Tensor | None, negative: Negative) -> tuple[Tensor, Tensor | None]:
    """A negative's tokens, and which of them are not padding."""
    if negative.tokens_BLD is not None:
        return negative.tokens_BLD, negative.valid_BL
    return own_BLD[negative.row_B], valid_of(valid_BL, negative)


def valid_of(valid_BL: Tensor | None, negative: Negative) -> Tensor | None:
    """Which tokens of the negatives are not padding; None = all.

    Args:
        valid_BL: the same of the batch's own sequences.
    """
    if negative.row_B is None or valid_BL is None:
        return negative.valid_BL
    return valid_BL[negative.row_B]


def pruned(
    encoder: Any,
    stream: Stream | None,
    match: MatchStream | None = None,
    valid_BL: Tensor | None = None,
    context_valid_BU: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """All sequences that share a context in one pass, which computes only what is read."""
    if stream and match and stream.context_BUD is not match.context_BUD:
        fused_BXD, _ = pruned(encoder, stream, None, valid_BL, context_valid_BU)
        return fused_BXD, pruned(encoder, None, match, valid_BL, context_valid_BU)[1]
    given = [one for one in (stream, match) if one]
    if not given:
        return None, None
    layout = Layout(
        stream.tokens_BLD.shape[1] if stream else 0,
        match.tokens_BLD.shape[1] if match else 0,
        valid_BL,
        context_valid_BU,
        match,
        stream.keep_BC if stream else None,
    )
    tokens, contexts = [one.tokens_BLD for one in given], [given[0].context_BUD]
    if match and match.foreign:
        tokens, contexts = [*tokens, match.foreign[0]], [*contexts, match.foreign[1]]
    kept_BXD = encoder.run(_joined(tokens), _joined(contexts), layout)
    return kept_BXD[:, : layout.kept], kept_BXD[:, layout.kept :]


def _joined(sequences: list[Tensor]) -> Tensor:
    return sequences[0] if len(sequences) == 1 else torch.cat(sequences, dim=1)


FUSION = Op(
    "fusion",
    Implementation("pruned", pruned),
    Implementation("plain", plain),
)
"""FUSION(encoder, stream, match=None, valid_BL=None, context_valid_BU=None) -> the wanted places of the stream BCD, and
of the match stream CLS B3D: of the pair itself, of the negative with the pair's context, of the pair with a negative
context. Either stream may be None; what is returned in its place has no meaning.

    encoder: a module of blocks, which computes one sequence when called, and `run`s those of a `Layout`.
    valid_BL, context_valid_BU: bool, False = padding, of the sequences and of the contexts; None = no padding."""


@dataclass(frozen=True)
class Segment:
    """Which of a batch's queries attend to which keys: `count` sequences of each pair, equally long, side by side."""

    queries: slice
    keys: slice
    count: int = 1
    rows_B: Tensor | None = None  # the pair whose keys pair i attends to; None = its own
    valid: Tensor | None = None  # bool, the keys that are not padding: B x keys; None = all


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a pair are among T tokens, and what each attends to.

    Attributes:
        length: tokens of the sequence of a `Stream`; 0 = there is none.
        match_length: tokens of each sequence of a match; 0 = nothing is matched.
        valid_BL: of the sequences; None = no padding.
        context_valid_BU: of the contexts; None = no padding.
        match: what is matched; negatives from outside the batch come after the own sequences and contexts.
        keep_BC: as in `Stream`.
    """

    length: int
    match_length: int = 0
    valid_BL: Tensor | None = None
    context_valid_BU: Tensor | None = None
    match: MatchStream | None = None
    keep_BC: Tensor | None = None

    @property
    def kept(self) -> int:
        """Tokens of the `Stream` that the last block computes."""
        return self.length if self.keep_BC is None else self.keep_BC.shape[1]

    def spread(self, sources_BTD: Tensor, last: bool) -> Tensor:
        """The sources, or what the last block keeps of them -> all four sequences."""
        if self.match is None:
            return sources_BTD
        begin, length = (self.kept, 1) if last else (self.length, self.match_length)
        own_BLD = sources_BTD[:, begin : begin + length]
        if self.match.foreign:
            return torch.cat([sources_BTD, own_BLD], dim=1)
        return torch.cat([sources_BTD, own_BLD[self.match.negative.row_B], own_BLD], dim=1)

    def self_segments(self, first: bool, last: bool) -> list[Segment]:
        """Every sequence attends to itself; the first block has the sources, the last only queries that it keeps."""
        own, valid, matches = self.valid_BL, self.valid_BL, 3
        if first:
            matches = 2 if self.match and self.match.foreign else 1
        if own is not None and self.match:
            negative = valid_of(own, self.match.negative)
            assert negative is not None
            valid = torch.cat([own, negative, own][:matches], dim=1)
        if not last and self.length == self.match_length:
            both_valid = None if own is None or valid is None else torch.cat([own, valid], dim=1)
            return [Segment(slice(None), slice(None), 1 + matches, valid=both_valid)]
        split, segments = self.kept if last else self.length, []
        if self.length:
            segments.append(Segment(slice(0, split), slice(0, self.length), valid=own))
        if self.match_length:
            segments.append(Segment(slice(split, None), slice(self.length, None), matches, valid=valid))
        return segments

    def cross_segments(self, last: bool) -> list[Segment]:
        """All sequences attend to their pair's own context, except for the last of a match."""
        valid = self.context_valid_BU
        if self.match is None:
            return [Segment(slice(None), slice(None), valid=valid)]
        own = (self.kept + 2) if last else (self.length + 2 * self.match_length)
        keys = negative_keys = slice(None)
        negative = self.match.context_negative
        if self.match.foreign:
            length = self.match.context_BUD.shape[1]
            keys, negative_keys = slice(0, length), slice(length, None)
        return [
            Segment(slice(0, own), keys, valid=valid),
            Segment(slice(own, None), negative_keys, rows_B=negative.row_B, valid=valid_of(valid, negative)),
        ]

    def keep(self, x_BTD: Tensor) -> Tensor:
        """What the last block has to compute: the wanted places of the `Stream`, and CLS of each match."""
        if self.keep_BC is None and not self.match_length:
            return x_BTD
        batch, length, _ = x_BTD.shape
        kept_BC = self.keep_BC
        if kept_BC is None:
            kept_BC = torch.arange(self.length, device=x_BTD.device).expand(batch, -1)
        if self.match_length:
            cls_X = torch.arange(self.length, length, self.match_length, device=x_BTD.device)
            kept_BC = torch.cat([kept_BC, cls_X.expand(batch, -1)], dim=1)
        return take(x_BTD, kept_BC)


def split(x_BTD: Tensor, slices: list[slice]) -> list[Tensor]:
    """Slices of each sequence; if they make up all of it, by one operation, as a slice's gradient is full-length."""
    length = x_BTD.shape[1]
    # Not by slice.indices, which torch 2.11's compiler does not know: it would end its graph here.
    bounds = [(part.start or 0, length if part.stop is None else part.stop) for part in slices]
    ends = [0, *(end for _, end in bounds)]
    if len(slices) == 1 and bounds == [(0, length)]:
        return [x_BTD]
    if [start for start, _ in bounds] == ends[:-1] and ends[-1] == length:
        return list(x_BTD.split([end - start for start, end in bounds], dim=1))
    return [x_BTD[:, part] for part in slices]


def take(x_BLD: Tensor, place_BC: Tensor) -> Tensor:
    """The tokens at some places of each sequence -> BCD."""
    return x_BLD.gather(1, place_BC[:, :, None].expand(-1, -1, x_BLD.shape[-1]))
