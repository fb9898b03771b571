"""ITC over all ranks and micro-batches: how features travel, and when it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache, partial

import torch
from torch import Tensor

from mvlm.batch import Batch, Encoded, ItcGradients
from mvlm.model.losses.itc import ALONE, Peers, begin_contrast
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import replicas
from mvlm.runtime.gathered import Gathered, Ring

KEPT_BELOW = 524_288
"""Pairs of a global batch from which a rank no longer holds all features at once, 1 GB at a width of 256: the softmax,
which needs them twice, then has them sent twice."""
KEPT_SHARE = 512
"""Pairs per rank up to which all features are held even so, of at most four times that many pairs: against a step, the
cost of sending them twice grows with the ranks, to an eighth on 4,096 (`mvlm plan`)."""
BLOCK = 65_536
"""Pairs whose features a rank then holds at a time, 135 MB: with fewer, latencies add up (`mvlm plan`)."""

Contrasting = Callable[[Encoded, Tensor, "Tensor | None"], Callable[[], ItcGradients]]


def ranks_at_once(global_batch: int, ranks: int, exchange: str) -> int:
    """How many ranks' features a rank holds at a time: one other's in a ring; else all, or those of a block of pairs,
    and at least one rank's."""
    if exchange == "ring":
        return 1
    kept_below = min(4 * KEPT_BELOW, max(KEPT_BELOW, KEPT_SHARE * ranks))
    return ranks if global_batch < kept_below else max(1, min(ranks, BLOCK * ranks // global_batch))


def peers(global_batch: int, exchange: str) -> Peers:
    """All replicas, each with its share of the global batch's pairs.

    Args:
        exchange: `objectives.itc_exchange`.
    """
    world = replicas.world()
    if world == 1:
        return ALONE
    at_once = ranks_at_once(global_batch, world, exchange)
    return Peers(Ring if exchange == "ring" else partial(Gathered, at_once=at_once), replicas.all_reduce, world)


def contrast_of(
    model: MaskVLM, micro_batches: Sequence[Batch], seed_part: Callable[[int], None]
) -> Iterator[Contrasting]:
    """What computes ITC for each of a rank's micro-batches.

    A single one uses the features of its own forward pass. For several, the features of all are computed beforehand,
    thus twice, with the same dropout, and only the gradients at them are kept (Gao et al., "GradCache", arXiv
    2101.06983, section 3.2).

    Args:
        seed_part: seeds a micro-batch's device randomness, given its number.
    """
    excludes = model.objectives.exclude_duplicates
    everybody = peers(replicas.world() * sum(map(len, micro_batches)), model.objectives.itc_exchange)

    def contrast(own: Encoded, temperature: Tensor, bias: Tensor | None) -> Callable[[], ItcGradients]:
        return begin_contrast(own, temperature, bias, excludes, everybody)

    if not model.objectives.itc or len(micro_batches) == 1:
        return iter([contrast] * len(micro_batches))
    owns = []
    with torch.no_grad():
        for number, batch in enumerate(micro_batches):
            seed_part(number)
            owns.append(model.encode_pairs(batch)[0])
        finish = contrast(_joined(owns), *model.contrastive_scale())
    known = cache(lambda: finish().split(len(micro_batches)))
    return (lambda *_, number=number: lambda: known()[number] for number in range(len(micro_batches)))


def _joined(parts: list[Encoded]) -> Encoded:
    return Encoded(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Encoded)))
