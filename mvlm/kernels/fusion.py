"""A cross-modality encoder over the streams of every pair: each by itself, or all in one pass that is pruned.

Of each pair it has up to four sequences: the masked stream, which is to be reconstructed, and the three of the match
stream: the pair's own, a negative in its place, and the pair's own again. The first three attend to the pair's own
context, the last to a negative one. Pruned, their tokens stand one after another in a tensor B x T x D, and nothing is
computed that nobody reads, for only CLS is read of a match and only masked places of what is reconstructed:

- the own sequence and the negative are the same sequences in another order until they meet a context, so the first
  self-attention is computed once for all three (`first`, then `spread`);
- the last block computes CLS alone of each match and masked places alone of the masked stream (`kept`);
- a context's keys and values are projected once, and a negative one is a row of them (`Segment.rows_B`);
- sequences that attend to one context are the queries of one attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvlm.kernels.dispatch import Implementation, Op
from mvlm.kernels.probes import torch_version


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
    """Both modalities of each pair, and their negatives.

    Attributes:
        negative_B: the pair whose tokens stand in for pair i's own.
        context_negative_B: the pair whose context stands in for pair i's own.
    """

    tokens_BLD: Tensor
    context_BUD: Tensor
    negative_B: Tensor
    context_negative_B: Tensor


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
        own: Any = slice(None)
        cls_BD = []
        for rows, context_rows in (own, own), (match.negative_B, own), (own, match.context_negative_B):
            valid = None if valid_BL is None else valid_BL[rows]
            context_valid = None if context_valid_BU is None else context_valid_BU[context_rows]
            matched_BLD = encoder(match.tokens_BLD[rows], match.context_BUD[context_rows], valid, context_valid)
            cls_BD.append(matched_BLD[:, 0])
        cls_B3D = torch.stack(cls_BD, dim=1)
    return fused_BXD, cls_B3D


def pruned(
    encoder: Any,
    stream: Stream | None,
    match: MatchStream | None = None,
    valid_BL: Tensor | None = None,
    context_valid_BU: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """All sequences that share a context in one pass, of which is computed what is read."""
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
        match.negative_B if match else None,
        match.context_negative_B if match else None,
        stream.keep_BC if stream else None,
    )
    tokens_BTD = given[0].tokens_BLD if len(given) == 1 else torch.cat([one.tokens_BLD for one in given], dim=1)
    kept_BXD = encoder.run(tokens_BTD, given[0].context_BUD, layout)
    return kept_BXD[:, : layout.kept], kept_BXD[:, layout.kept :]


FUSION = Op(
    "fusion",
    Implementation("pruned", pruned, version=torch_version),
    Implementation("plain", plain, version=torch_version),
)
"""FUSION(encoder, stream, match=None, valid_BL=None, context_valid_BU=None) -> the wanted places of the stream BCD, and
of the match stream CLS B3D: of the pair itself, of the negative with the pair's context, of the pair with a negative
context. Either stream may be None; what is returned in its place says nothing.

    encoder: a module of blocks, which computes one sequence when called, and `run`s those of a `Layout`.
    valid_BL, context_valid_BU: bool, False = padding, of the sequences and of the contexts; None = there is none."""


@dataclass(frozen=True)
class Segment:
    """Which of a batch's queries attend to which keys: `count` sequences of each pair, equally long, side by side."""

    queries: slice
    keys: slice
    count: int = 1
    rows_B: Tensor | None = None  # the pair whose keys pair i attends to; None = its own
    valid: Tensor | None = None  # bool, the keys that are no padding: B x keys; None = all


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a pair stand among T tokens, and what each attends to.

    Attributes:
        length: tokens of the sequence that stands by itself; 0 = there is none.
        match_length: tokens of each sequence of a match; 0 = nothing is matched.
        valid_BL: of the sequences; None = no padding.
        context_valid_BU: of the contexts; None = no padding.
        negative_B, context_negative_B: as in `MatchStream`.
        keep_BC: as in `Stream`.
    """

    length: int
    match_length: int = 0
    valid_BL: Tensor | None = None
    context_valid_BU: Tensor | None = None
    negative_B: Tensor | None = None
    context_negative_B: Tensor | None = None
    keep_BC: Tensor | None = None

    @property
    def kept(self) -> int:
        """Tokens of the sequence by itself that the last block computes."""
        return self.length if self.keep_BC is None else self.keep_BC.shape[1]

    def spread(self, sources_BTD: Tensor, last: bool) -> Tensor:
        """The sequence by itself and the own one, or what the last block keeps of them -> all four."""
        if not self.match_length:
            return sources_BTD
        own_BLD = sources_BTD[:, self.kept if last else self.length :]
        return torch.cat([sources_BTD, own_BLD[self.negative_B], own_BLD], dim=1)

    def self_segments(self, first: bool, last: bool) -> list[Segment]:
        """Every sequence to itself; the first block has two of them, the last has queries for what it keeps."""
        own, valid, matches = self.valid_BL, self.valid_BL, 1 if first else 3
        if own is not None and self.match_length and not first:
            valid = torch.cat([own, own[self.negative_B], own], dim=1)
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
        """All sequences to their pair's own context, but for the last of the matches."""
        valid = self.context_valid_BU
        if not self.match_length:
            return [Segment(slice(None), slice(None), valid=valid)]
        own = (self.kept + 2) if last else (self.length + 2 * self.match_length)
        rows_B = self.context_negative_B
        negative_valid = None if valid is None else valid[rows_B]
        return [
            Segment(slice(0, own), slice(None), valid=valid),
            Segment(slice(own, None), slice(None), rows_B=rows_B, valid=negative_valid),
        ]

    def keep(self, x_BTD: Tensor) -> Tensor:
        """What the last block has to compute: the wanted places of the sequence by itself, CLS of each match."""
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
    """Slices of each sequence; where they make up all of it, by one operation: a slice's gradient is as long as it."""
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
