"""The classifier over the vocabulary and its cross-entropy in one operation, so that logits need not be kept."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mvlm.batch import MetricAccumulator
from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op
from mvlm.kernels.linear import linear

ACCURACY = "word_accuracy"


def by_torch(
    tokens_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_M: Tensor, metrics: MetricAccumulator | None = None
) -> Tensor:
    logits_MV = linear(tokens_MD, weight_VD, bias_V)
    if metrics:
        metrics.count(ACCURACY, logits_MV.detach().argmax(-1) == target_M)
    return F.cross_entropy(logits_MV.float(), target_M, reduction="sum")


def by_liger(
    tokens_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_M: Tensor, metrics: MetricAccumulator | None = None
) -> Tensor:
    """A few rows of logits at a time, gradients computed on the way forward (liger_kernel)."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

    ignored, lse_square_scale, smoothing = -100, 0.0, 0.0
    plain = None, False, None, False, False  # softcap, z-loss, precision of sums, scaling by probability, accuracy
    total, *_, guess_M = Liger.apply(
        tokens_MD, weight_VD, target_M, bias_V, None, ignored, lse_square_scale, smoothing, "sum", *plain, bool(metrics)
    )
    if metrics:
        metrics.count(ACCURACY, guess_M == target_M)
    return total.float()


def _liger_takes(
    tokens_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_M: Tensor, metrics: MetricAccumulator | None = None
) -> str | None:
    if tokens_MD.device.type != "cuda" and not probes.triton_interprets():
        return "it runs on CUDA"
    if tokens_MD.dtype != weight_VD.dtype or not len(tokens_MD):
        return "it takes rows of the weight's own precision"
    return None


def _liger_pays(*_: object) -> str | None:
    return "so few hidden words become many small products: taken by name alone"


MLM_LOSS = Op(
    "word_loss",
    Implementation("liger", by_liger, probes.liger, _liger_takes, _liger_pays, lambda: probes.version("liger-kernel")),
    Implementation("torch", by_torch, version=probes.torch_version),
)
"""MLM_LOSS(tokens_MD, weight_VD, bias_V, target_M, metrics=None) -> fp32 scalar, the SUM over M of the words'
cross-entropies; `metrics` counts in `word_accuracy` how many
of the M have the largest logit."""
