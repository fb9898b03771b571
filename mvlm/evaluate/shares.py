"""Work split over ranks so that every rank makes equally many model calls of equal size.

ZeRO-3 gathers weights inside each call, so a rank with fewer calls would leave the others waiting for ever.
Ranks take contiguous shares; the last ones repeat the last item where the count does not divide.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mvlm import dist


def batches(count: int, size: int) -> Iterator[np.ndarray]:
    """This rank's share of the items 0..count-1, as index arrays of at most `size` items."""
    share = -(-count // dist.world())
    indices = np.minimum(dist.rank() * share + np.arange(share), count - 1)
    for start in range(0, share, size):
        yield indices[start : start + size]


def gather(parts: list[Tensor], count: int) -> Tensor:
    """What all ranks computed for their `batches`, concatenated in the items' order, repeats left out."""
    return dist.all_gather(torch.cat(parts))[:count]


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; the training mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
