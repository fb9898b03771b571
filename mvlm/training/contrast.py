"""ITC over all ranks and micro-batches: how features travel, and when it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from mvlm.batch import Batch, Contrast, Encoded
from mvlm.model.losses.itc import Peers, contrast_pairs
from mvlm.model.maskvlm import MaskVLM
from mvlm.runtime import dist
from mvlm.runtime.ring import Ring, at_once

RING_FROM = 524_288
"""Pairs of the global batch from which features travel around a ring: gathered, they would fill 1 GB of every GPU (at
a width of 256). Below, one all-gather is faster: it uses all adapters of a node, and the softmax needs it once."""

Contrasting = Callable[[Encoded, Tensor, "Tensor | None"], Contrast]


def uses_ring(global_batch: int, ranks: int) -> bool:
    """Whether no rank gathers everybody's features."""
    return ranks > 1 and global_batch >= RING_FROM


def peers(global_batch: int) -> Peers:
    """All ranks, each with its share of the global batch's pairs."""
    return Peers(Ring if uses_ring(global_batch, dist.world()) else at_once, dist.all_reduce, dist.world())


def contrast_of(
    model: MaskVLM, micro_batches: Sequence[Batch], seed_part: Callable[[int], None]
) -> Iterator[Contrasting]:
    """What computes ITC for each of a rank's micro-batches: in the forward pass of an only one, before the first of
    several.

    Features of several are computed twice, with the same dropout, and only the gradients at them are kept (Gao et al.,
    "GradCache", arXiv 2101.06983, section 3.2).

    Args:
        seed_part: makes a micro-batch's device randomness begin, given its number.
    """
    excludes = model.objectives.exclude_duplicates
    everybody = peers(dist.world() * sum(map(len, micro_batches)))

    def contrast(own: Encoded, temperature: Tensor, bias: Tensor | None) -> Contrast:
        return contrast_pairs(own, temperature, bias, excludes, everybody)

    if not model.objectives.itc or len(micro_batches) == 1:
        return iter([contrast] * len(micro_batches))
    owns = []
    with torch.no_grad():
        for number, batch in enumerate(micro_batches):
            seed_part(number)
            owns.append(model.encode_pairs(batch)[0])
        whole = contrast(_joined(owns), *model.contrastive_scale())
    return (lambda *_, known=known: known for known in whole.split(len(micro_batches)))


def _joined(parts: list[Encoded]) -> Encoded:
    return Encoded(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Encoded)))
