"""Tensors of all ranks, those of so many at a time, on their way while whoever asked for them goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mvlm.runtime import dist

Coming: TypeAlias = "tuple[Tensor, torch_dist.Work]"
"""What will be a block once its work is done."""


class Gathered:
    """Blocks of consecutive ranks' tensors, in rank order, each with the row at which the own ones begin; where these
    are in another block, with one so far before its first that none of them is in it.

    A block is the sum of what each rank knows of it. NCCL sums by a tree of log2(N) hops, where its all-gather is a
    ring through all N ranks (`mvlm plan` has the seconds of both). The first block is on its way from the moment this
    is made, each other from when work on the one before it begins: no rank holds more than two beside its own. They may
    be gone through several times; an only one is kept, several travel again. All ranks must do so in step.

    Args:
        own: equally shaped on all ranks, of equally many rows, each of a multiple of four bytes.
        at_once: ranks of a block.
    """

    def __init__(self, own: list[Tensor], at_once: int) -> None:
        self._own, self._at_once = [tensor.detach() for tensor in own], at_once
        rows = [tensor.reshape(len(tensor), -1).view(torch.int32) for tensor in self._own]
        self._widths, self._packed = [row.shape[1] for row in rows], torch.cat(rows, 1)
        self._kept: list[Tensor] | None = None
        self._begun: Coming | None = self._begin(0)

    def __iter__(self) -> Iterator[tuple[int, list[Tensor]]]:
        place, world, share = dist.rank(), dist.world(), len(self._packed)
        if self._kept:
            yield place * share, self._kept
            return
        coming: Coming | None = self._begun or self._begin(0)
        self._begun = None
        for first in range(0, world, self._at_once):
            assert coming
            (whole, work), following = coming, first + self._at_once
            coming = self._begin(following) if following < world else None
            work.wait()
            block = self._unpacked(whole)
            del whole
            if self._at_once >= world:
                self._kept = block
            yield ((place - first) * share if first <= place < following else -share), block

    def _begin(self, first: int) -> Coming:
        """The block that begins with the rank `first`."""
        place, share = dist.rank() - first, len(self._packed)
        ranks = min(self._at_once, dist.world() - first)
        whole = self._packed.new_zeros(ranks * share, self._packed.shape[1])
        if 0 <= place < ranks:
            whole[place * share : (place + 1) * share] = self._packed
        # four bytes of anything as an integer, to which nothing but zeros are added
        return whole, torch_dist.all_reduce(whole, async_op=True)

    def _unpacked(self, whole: Tensor) -> list[Tensor]:
        """Views where rows may begin at any four bytes, which integers of eight may not."""
        parts = [
            part if one.element_size() <= 4 else part.contiguous()
            for one, part in zip(self._own, whole.split(self._widths, 1), strict=True)
        ]
        return [part.view(one.dtype).reshape(-1, *one.shape[1:]) for one, part in zip(self._own, parts, strict=True)]
