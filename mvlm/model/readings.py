"""Several readings of every pair in one pass of a cross encoder, without computing what nobody uses.

Of each pair a cross encoder reads up to four sequences, whose tokens stand one after another in a tensor B x T x D:
the hidden sequence, to be restored, and then the three of image-text matching (METHOD's ITM): the pair's own, the drawn
negative in its place, and the pair's own again. The first three read the pair's own context, the last a drawn one.
Exact savings, for only CLS is read of a match and only hidden places of what is restored:

- the own sequence and the drawn one are the same sequences in another order until they meet a context, so the first
  self-attention is computed once for all three (`sources`, then `spread`);
- the last block computes CLS alone of each match and hidden places alone of what is restored (`kept`);
- a context's keys and values are projected once and a drawn one is a row of them (`Look.rows_B`);
- sequences that read one context are the queries of one attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Restoring:
    """Args:
    hidden_BLD: what is hidden in part.
    context_BUD: the other modality, which it is restored from.
    keep_BC: the places that are wanted; None = all.
    """

    hidden_BLD: Tensor
    context_BUD: Tensor
    keep_BC: Tensor | None = None


@dataclass(frozen=True)
class Matching:
    """Args:
    own_BLD, context_BUD: the two modalities of each pair.
    drawn_B: the pair whose sequence stands in for pair i's own, as a negative of its context.
    context_drawn_B: the pair whose context stands in for pair i's own.
    """

    own_BLD: Tensor
    context_BUD: Tensor
    drawn_B: Tensor
    context_drawn_B: Tensor


@dataclass(frozen=True)
class Look:
    """Which of a batch's queries look at which keys: `count` sequences of each pair, equally long, side by side."""

    queries: slice
    keys: slice
    count: int = 1
    rows_B: Tensor | None = None  # the pair whose keys pair i looks at; None = its own
    valid: Tensor | None = None  # bool, the keys that are no padding: B x keys; None = all


@dataclass(frozen=True)
class Readings:
    """Args:
    restored: tokens of the hidden sequence; 0 = none is read.
    matched: tokens of a sequence of a match; 0 = nothing is matched.
    valid_BL: of the sequences that read; None = no padding.
    context_valid_BT: of the contexts; None = no padding.
    drawn_B: the pair whose sequence stands in for pair i's own.
    context_drawn_B: the pair whose context stands in for pair i's own.
    keep_BC: the places of the hidden sequence that are wanted; None = all.
    """

    restored: int
    matched: int = 0
    valid_BL: Tensor | None = None
    context_valid_BT: Tensor | None = None
    drawn_B: Tensor | None = None
    context_drawn_B: Tensor | None = None
    keep_BC: Tensor | None = None

    def spread(self, sources_BTD: Tensor, last: bool) -> Tensor:
        """The hidden and the own sequence, or what the last block keeps of them -> all four."""
        if not self.matched:
            return sources_BTD
        own_BLD = sources_BTD[:, self._kept() if last else self.restored :]
        return torch.cat([sources_BTD, own_BLD[self.drawn_B], own_BLD], dim=1)

    def self_looks(self, first: bool, last: bool) -> list[Look]:
        """Every sequence at itself; the first block has the sources alone, the last has queries for what it keeps."""
        own, valid, matches = self.valid_BL, self.valid_BL, 1 if first else 3
        if own is not None and self.matched and not first:
            valid = torch.cat([own, own[self.drawn_B], own], dim=1)
        if not last and self.restored == self.matched:
            both_valid = None if own is None or valid is None else torch.cat([own, valid], dim=1)
            return [Look(slice(None), slice(None), 1 + matches, valid=both_valid)]
        split, looks = self._kept() if last else self.restored, []
        if self.restored:
            looks.append(Look(slice(0, split), slice(0, self.restored), valid=own))
        if self.matched:
            looks.append(Look(slice(split, None), slice(self.restored, None), matches, valid=valid))
        return looks

    def cross_looks(self, last: bool) -> list[Look]:
        """All sequences at their pair's own context, but for the last of the matches."""
        if not self.matched:
            return [Look(slice(None), slice(None), valid=self.context_valid_BT)]
        own = (self._kept() + 2) if last else (self.restored + 2 * self.matched)
        valid = self.context_valid_BT
        drawn_valid = None if valid is None else valid[self.context_drawn_B]
        return [
            Look(slice(0, own), slice(None), valid=valid),
            Look(slice(own, None), slice(None), rows_B=self.context_drawn_B, valid=drawn_valid),
        ]

    def keep(self, x_BTD: Tensor) -> Tensor:
        """What the last block has to compute: the wanted places of the hidden sequence, CLS of each match."""
        if self.keep_BC is None and not self.matched:
            return x_BTD
        batch, length, _ = x_BTD.shape
        kept_BC = self.keep_BC
        if kept_BC is None:
            kept_BC = torch.arange(self.restored, device=x_BTD.device).expand(batch, -1)
        if self.matched:
            cls_3 = torch.arange(self.restored, length, self.matched, device=x_BTD.device)
            kept_BC = torch.cat([kept_BC, cls_3.expand(batch, -1)], dim=1)
        return take(x_BTD, kept_BC)

    def _kept(self) -> int:
        return self.restored if self.keep_BC is None else self.keep_BC.shape[1]

    def split(self, kept_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What the last block gives -> the restored places BCD and the matches' CLS B3D; no length where none is."""
        return kept_BTD[:, : self._kept()], kept_BTD[:, self._kept() :]


def places(x_BTD: Tensor, slices: list[slice]) -> list[Tensor]:
    """Places of each sequence; where they make up all of it, by one operation: a slice's gradient is as long as it."""
    bounds = [part.indices(x_BTD.shape[1]) for part in slices]
    ends = [0, *(end for _, end, _ in bounds)]
    if len(slices) == 1 and ends[-1] - bounds[0][0] == x_BTD.shape[1]:
        return [x_BTD]
    if [start for start, _, _ in bounds] == ends[:-1] and ends[-1] == x_BTD.shape[1]:
        return list(x_BTD.split([end - start for start, end, _ in bounds], dim=1))
    return [x_BTD[:, part] for part in slices]


def take(x_BLD: Tensor, place_BC: Tensor) -> Tensor:
    """The tokens at some places of each sequence -> BCD."""
    return x_BLD.gather(1, place_BC[:, :, None].expand(-1, -1, x_BLD.shape[-1]))
