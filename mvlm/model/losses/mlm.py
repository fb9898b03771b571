"""Masked language modelling: which tokens are masked? (paper, section 3.2)"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import IGNORE, MetricAccumulator


def mlm_loss(
    logits_MV: Tensor, target_M: Tensor, masked_tokens: Tensor, parts: int, metrics: MetricAccumulator | None = None
) -> Tensor:
    """Cross-entropy of the M masked tokens of a micro-batch, as its share of the global batch's mean, in fp32.

    Args:
        target_M: `IGNORE` for those that only fill up.
        masked_tokens: how many tokens the whole global batch masks.
        parts: micro-batches in it, whose results are averaged.
        metrics: gets `word_accuracy`.
    """
    if metrics:
        metrics.count("word_accuracy", logits_MV.detach().argmax(-1) == target_M, target_M != IGNORE)
    total = F.cross_entropy(logits_MV.float(), target_M, reduction="sum")
    return total * parts / masked_tokens.clamp(min=1)  # captions of special tokens alone have nothing to mask
