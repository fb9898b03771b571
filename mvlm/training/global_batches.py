"""What a rank's micro-batches need of the global batch that they are part of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from mvlm.batch import Batch, Counts, GlobalBatch, LabelledBatch, Negatives
from mvlm.model.encoders import Encoders
from mvlm.model.maskvlm import MaskVLM, denominators
from mvlm.runtime import replicas
from mvlm.training.contrast import contrast_of
from mvlm.training.match_groups import Passes, match_groups

Part = tuple[Batch | LabelledBatch, GlobalBatch | None]


def with_global_batches(
    model: Encoders, micro_batches: Sequence[Batch | LabelledBatch], seed_part: Callable[[int], None], scale: float
) -> Iterator[Part]:
    """Each micro-batch and what it needs of the global batch: what losses are divided by, all features, negatives.

    They come one after another: what a micro-batch needs beforehand is computed when its turn comes. Fine-tuning's
    losses are plain means over samples, which need nothing.

    Args:
        seed_part: seeds a micro-batch's device randomness, given its number.
        scale: what ITM's loss is multiplied by before the backward pass of a step with a single micro-batch.
    """
    pairs = [batch for batch in micro_batches if isinstance(batch, Batch)]
    if not pairs:
        yield from ((batch, None) for batch in micro_batches)
        return
    assert isinstance(model, MaskVLM)
    parts, spans = len(pairs) * replicas.world(), match_groups(model, pairs)
    pairs = [batch for groups in spans for batch in groups.batches]
    counted = [groups.counted(wave) for groups in spans for wave in range(groups.span.waves)]
    own_counts = [denominators(*known) for known in zip(pairs, counted, strict=True)]
    counts = replicas.all_reduce(torch.stack(own_counts).sum(0))
    contrasts = list(contrast_of(model, pairs, seed_part))
    for first, groups in zip(range(0, len(pairs), spans[0].span.waves), spans, strict=True):

        def seed_wave(wave: int, first: int = first) -> None:
            seed_part(first + wave)

        def global_batch(wave: int, negatives: Negatives, first: int = first) -> GlobalBatch:
            return GlobalBatch(contrasts[first + wave], negatives, Counts(parts, counted[first + wave], *counts))

        passes = Passes(model, seed_wave, scale / len(pairs))
        yield from zip(groups.batches, groups.global_batches(passes, global_batch), strict=True)
