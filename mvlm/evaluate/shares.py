"""Work split over ranks so that every rank makes equally many model calls of equal size.

Ranks that split a model's layers among them make the same calls, and count as one rank here.

ZeRO-3 gathers weights inside each call, so a rank with fewer calls would leave the others waiting for ever.
A batch is the same items on any number of ranks, since matrix products of other shapes round differently: each rank
takes whole, successive batches, and the last batch is repeated if their number does not divide evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mvlm.runtime import replicas


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """This rank's share of the items 0..count-1, as index arrays of `size` items, or of all if there are fewer.

    The last batch repeats the last item to its full size.
    """
    size = min(size, count)
    total = -(-count // size)
    share = -(-total // replicas.world())
    for number in range(replicas.rank() * share, (replicas.rank() + 1) * share):
        yield np.minimum(min(number, total - 1) * size + np.arange(size), count - 1)


def places(number: int, count: int, size: int) -> list[slice]:
    """Which items each rank's batch `number` has, in rank order: none if it is a repeated one."""
    size = min(size, count)
    total = -(-count // size)
    share = -(-total // replicas.world())
    firsts = [(rank * share + number) * size for rank in range(replicas.world())]
    return [slice(min(first, count), min(first + size, count)) for first in firsts]


def gather(parts: list[Tensor], count: int) -> Tensor:
    """What all ranks computed for their `batches`, concatenated in the items' order, repeats left out."""
    return replicas.all_gather(torch.cat(parts))[:count]


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; the training mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
