"""The replicas of a model: which of them a rank belongs to, and what they exchange, as `dist` does for all ranks.

If ranks split the layers of a model among them (tensor parallelism), so many consecutive ranks are one replica and
see the same samples; replicas exchange between the ranks that have the same place in theirs. Otherwise each rank is a
replica.
"""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mvlm.runtime import dist

_size = 1


def arrange(size: int) -> None:
    """Make every `size` consecutive ranks one replica; `size` divides the number of ranks."""
    global _size
    assert dist.world() % size == 0, (dist.world(), size)
    _size = size


def size() -> int:
    """Ranks per replica."""
    return _size


def place() -> int:
    """The place of this rank in its replica."""
    return dist.rank() % _size


def rank() -> int:
    """The number of this rank's replica, from 0."""
    return dist.rank() // _size


def world() -> int:
    """The number of replicas."""
    return dist.world() // _size


def peer(replica: int) -> int:
    """The rank that has this one's place in another replica."""
    return replica * _size + place()


def group() -> torch_dist.ProcessGroup | None:
    """The ranks that have this one's place in their replicas; None = all ranks."""
    return None if _size == 1 else dist.group_of([peer(replica) for replica in range(world())])


def within() -> torch_dist.ProcessGroup:
    """The ranks of this replica."""
    first = rank() * _size
    return dist.group_of(range(first, first + _size))


def all_gather(tensor: Tensor, among: int = 0) -> Tensor:
    """Concatenate equally shaped tensors of all replicas along the first dimension, in their order, without gradient.

    Args:
        among: only those of so many consecutive replicas, a divisor of their number; 0 = of all.
    """
    among = among or world()
    first = rank() // among * among
    return dist.gather_from(tensor, [peer(replica) for replica in range(first, first + among)])


def all_reduce(tensor: Tensor, op: str = "sum") -> Tensor:
    """Reduce over the replicas by "sum" or "max", into a new tensor."""
    return dist.all_reduce(tensor, op, group())


@torch.no_grad()
def sum_within_(tensor: Tensor) -> Tensor:
    """Sum over the ranks of this replica, in place."""
    if _size > 1:
        torch_dist.all_reduce(tensor, group=within())
    return tensor
