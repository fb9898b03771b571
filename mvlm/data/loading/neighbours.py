"""How many rows of a batch were neighbours in their source: pages of one site, frames of one video, one album."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvlm.checkpoint.state import GLOBAL, OrderSpec
from mvlm.config.schema import Data, Train
from mvlm.data.loading.sampler import Sampler, make_sampler, order_of, reason_for_blocks, settle_shuffle
from mvlm.data.shards.mixture import Mixture, training_mixture
from mvlm.data.shards.schema import read_manifest

NEAR = 5
"""Rows count as neighbours if they are at most this far apart in the source; a row drawn twice is its own."""

LOOKED_AT = 1 << 16
"""How many rows are examined, in batches spread over an epoch."""


@dataclass(frozen=True)
class Neighbours:
    """The share of a batch's rows that have a neighbour in it: in an order, and if all rows are shuffled."""

    order: OrderSpec
    batch: int
    share: float
    shuffled: float

    def to_json(self) -> dict[str, Any]:
        about = {"order": str(self.order), "batch": self.batch, "within": NEAR}
        return about | {"share": self.share, "shuffled": self.shuffled, "sentence": str(self)}

    def __str__(self) -> str:
        return (
            f"The order of the samples is {self.order}: in a batch of {self.batch:,}, {self.share:.2%} of the rows "
            f"have another row of the batch within {NEAR} rows of them in the source ({self.shuffled:.2%} in a full "
            "shuffle)."
        )


def neighbours(mixture: Mixture, seed: int, order: OrderSpec, batch: int) -> Neighbours:
    """Computed from the order and the manifests; no shard is read.

    Raises:
        UserError: as in `make_sampler`.
    """
    batch = min(batch, mixture.per_epoch)
    share = near_share(make_sampler(mixture, seed, [order]), mixture, batch, order.from_epoch)
    full = make_sampler(mixture, seed + 1, [OrderSpec(GLOBAL)])
    return Neighbours(order, batch, share, near_share(full, mixture, batch))


def default_neighbours(folder: Path) -> Neighbours:
    """For a single folder, in the default order and global batch of a run."""
    data = Data(train=(str(folder),))
    data, _ = settle_shuffle(data, [reason_for_blocks(data)])
    mixture = training_mixture(data, read_manifest(folder).task)
    return neighbours(mixture, 0, order_of(data), Train().global_batch)


def near_share(sampler: Sampler, mixture: Mixture, batch: int, epoch: int = 0) -> float:
    first, last = epoch * sampler.per_epoch, (epoch + 1) * sampler.per_epoch - batch
    shares = []
    for start in np.unique(np.linspace(first, last, max(2, LOOKED_AT // batch)).astype(np.int64)).tolist():
        drawn, _ = sampler(np.arange(start, start + batch))
        near = np.diff(np.sort(mixture.numbers.approximate_rows(drawn))) <= NEAR
        shares.append(np.mean(np.append(near, False) | np.append(False, near)))
    return float(np.mean(shares))
