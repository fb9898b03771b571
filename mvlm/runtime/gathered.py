"""The tensors of all ranks, a block of ranks at a time, which travel while the caller goes on.

If several ranks are one replica of a model (mvlm/runtime/replicas.py), "rank" means replica here.

Both ways to send them yield blocks of consecutive ranks' tensors, each with the row at which this rank's own begin; in
a block without them that row is negative, by so much that they end before its first. The blocks may be iterated
several times, which all ranks must do in step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mvlm.runtime import replicas

Coming: TypeAlias = "tuple[Tensor, list[torch_dist.Work]]"
"""What will be a block once its work is done."""


class PackedRows:
    """Tensors with equally many rows packed into one, in words of four bytes.

    Args:
        own: equally shaped on all ranks, each row of a multiple of four bytes.
    """

    def __init__(self, own: list[Tensor]) -> None:
        self._own = [tensor.detach() for tensor in own]
        rows = [tensor.reshape(len(tensor), -1).view(torch.int32) for tensor in self._own]
        self._widths, self.rows = [row.shape[1] for row in rows], torch.cat(rows, 1)

    def unpacked(self, whole: Tensor) -> list[Tensor]:
        """Views of it, but copies for elements of eight bytes, which may not begin at just any four."""
        parts = [
            part if one.element_size() <= 4 else part.contiguous()
            for one, part in zip(self._own, whole.split(self._widths, 1), strict=True)
        ]
        return [part.view(one.dtype).reshape(-1, *one.shape[1:]) for one, part in zip(self._own, parts, strict=True)]


class Gathered:
    """Blocks in rank order, each the sum of what each rank has of it.

    NCCL sums by a tree of log2(N) hops, whereas its all-gather is a ring through all N ranks (`mvlm plan` has the
    seconds of both). The first block travels from the moment this is made, each other one from when work on the one
    before it begins: no rank holds more than two besides its own. A single block is kept; several travel again.

    Args:
        own: as for `PackedRows`.
        at_once: ranks per block.
    """

    def __init__(self, own: list[Tensor], at_once: int) -> None:
        self._packed, self._at_once = PackedRows(own), at_once
        self._kept: list[Tensor] | None = None
        self._begun: Coming | None = self._begin(0)

    def __iter__(self) -> Iterator[tuple[int, list[Tensor]]]:
        place, world, share = replicas.rank(), replicas.world(), len(self._packed.rows)
        if self._kept:
            yield place * share, self._kept
            return
        coming: Coming | None = self._begun or self._begin(0)
        self._begun = None
        for first in range(0, world, self._at_once):
            assert coming
            whole, following = _arrived(coming), first + self._at_once
            coming = self._begin(following) if following < world else None
            block = self._packed.unpacked(whole)
            del whole
            if self._at_once >= world:
                self._kept = block
            yield ((place - first) * share if first <= place < following else -share), block

    def _begin(self, first: int) -> Coming:
        """Begin the all-reduce of the block that starts with the rank `first`."""
        place, share = replicas.rank() - first, len(self._packed.rows)
        ranks = min(self._at_once, replicas.world() - first)
        whole = self._packed.rows.new_zeros(ranks * share, self._packed.rows.shape[1])
        if 0 <= place < ranks:
            whole[place * share : (place + 1) * share] = self._packed.rows
        # Exact whatever the four bytes are: as integers, to which only zeros are added.
        return whole, [torch_dist.all_reduce(whole, group=replicas.group(), async_op=True)]


class Ring:
    """Blocks of one rank each, this rank's own first, which every rank hands on to the next, as in "SigLIP" (Zhai et
    al., ICCV 2023, section 3.3).

    No rank holds more than one besides its own, and a second that arrives while that is worked on: what it holds does
    not grow with the ranks, and the last one takes all N - 1 hops.

    Args:
        own: as for `PackedRows`.
    """

    def __init__(self, own: list[Tensor]) -> None:
        self._packed = PackedRows(own)
        self._begun: Coming | None = self._hand_on(self._packed.rows) if replicas.world() > 1 else None

    def __iter__(self) -> Iterator[tuple[int, list[Tensor]]]:
        share, whole = len(self._packed.rows), self._packed.rows
        coming, self._begun = self._begun, None
        for hops_left in reversed(range(replicas.world())):
            if hops_left and not coming:
                coming = self._hand_on(whole)
            yield (0 if whole is self._packed.rows else -share), self._packed.unpacked(whole)
            if coming:
                whole, coming = _arrived(coming), None

    def _hand_on(self, whole: Tensor) -> Coming:
        """Hand a block on, and receive what the rank before this one hands on at the same time."""
        place, world, arriving = replicas.rank(), replicas.world(), torch.empty_like(whole)
        after, before = (replicas.peer((place + step) % world) for step in (1, -1))
        hops = [
            torch_dist.P2POp(torch_dist.isend, whole, after, replicas.group()),
            torch_dist.P2POp(torch_dist.irecv, arriving, before, replicas.group()),
        ]
        return arriving, torch_dist.batch_isend_irecv(hops)


def _arrived(coming: Coming) -> Tensor:
    whole, works = coming
    for work in works:
        work.wait()
    return whole
