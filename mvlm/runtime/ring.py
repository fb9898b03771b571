"""Tensors of all ranks, at once or one rank's after another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mvlm.runtime import dist


def at_once(own: list[Tensor]) -> list[tuple[int, list[Tensor]]]:
    """Everybody's tensors in one block, concatenated in the order of the ranks, and the row at which the own begin.

    They travel in one all-gather, whose latency grows with the ranks, as rows of bytes.

    Args:
        own: equally shaped on all ranks, and of equally many rows.
    """
    start = dist.rank() * len(own[0])
    if dist.world() == 1:
        return [(start, [tensor.detach() for tensor in own])]
    rows = [tensor.detach().reshape(len(tensor), -1).view(torch.uint8) for tensor in own]
    parts = dist.all_gather(torch.cat(rows, 1)).split([row.shape[1] for row in rows], 1)
    wholes = zip(own, parts, strict=True)
    return [(start, [part.contiguous().view(one.dtype).reshape(-1, *one.shape[1:]) for one, part in wholes])]


class Ring:
    """Each rank's tensors as a block of their own, the own first and at row 0; the others' own rows lie before them.

    Every rank hands what it holds to the next one, while it works on it: no rank ever holds more than two blocks beside
    its own. All ranks must go through it, and through all of it, in step; several times, if they like.

    Args:
        own: equally shaped on all ranks, and of equally many rows.
    """

    def __init__(self, own: list[Tensor]) -> None:
        self.own = [tensor.detach().contiguous() for tensor in own]

    def __iter__(self) -> Iterator[tuple[int, list[Tensor]]]:
        rank, world, block = dist.rank(), dist.world(), self.own
        for turn in range(world):
            coming: list[Tensor] = []
            under_way = []
            if turn < world - 1:
                coming = [torch.empty_like(tensor) for tensor in block]
                sends = [torch_dist.P2POp(torch_dist.isend, tensor, (rank + 1) % world) for tensor in block]
                receipts = [torch_dist.P2POp(torch_dist.irecv, tensor, (rank - 1) % world) for tensor in coming]
                under_way = torch_dist.batch_isend_irecv(sends + receipts)
            yield (-len(block[0]) if turn else 0), block
            for work in under_way:
                work.wait()
            block = coming
