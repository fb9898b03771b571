"""The contrastive loss's share of one micro-batch: its own rows and columns of the global batch's similarities.

With s_ij = image_i · text_j / T, the loss of G pairs is the mean over i of

    (log sum_j exp s_ij - s_ii) / 2  +  (log sum_j exp s_ji - s_ii) / 2,

the sums over j without pairs of the same image or caption as i. Once the log-sum-exps of all rows and columns are
known, the gradient at image i needs row i alone, and that at text i column i: no micro-batch computes more than its own
rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mvlm.batch import GatheredFeatures
from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op

PAYS = 65_536
"""Pairs of the global batch from which the streaming kernels are worth it; below, the B x G similarities are small."""

WIDEST = 512
"""Contrastive width that the Triton kernels hold at once."""


def log_sum_exps(
    own_BE: Tensor, others_GE: Tensor, temperature: Tensor, start: int, ids_G2: Tensor | None = None
) -> Tensor:
    """log sum_j exp(own_i · others_j / T), fp32, without gradient.

    Args:
        own_BE: the own pairs' features of one modality.
        others_GE: the global batch's features of the other; others_(start + i) is own_i's positive.
        temperature: T, one value.
        ids_G2: image and caption of each pair; pairs that share one are left out unless they are the positive.
    """
    return _scores(own_BE, others_GE, temperature, start, ids_G2).logsumexp(1)


def contrastive_gradient(
    own_BE: Tensor,
    others_GE: Tensor,
    temperature: Tensor,
    start: int,
    lse_B: Tensor,
    lse_G: Tensor,
    ids_G2: Tensor | None = None,
) -> Tensor:
    """The gradient at the own features of the sum over the G pairs: sum_j w_ij others_j / T, where
    w_ij = (exp(s_ij - lse_i) + exp(s_ij - lse_j)) / 2, less one at the positive.

    Args:
        lse_B: what `log_sum_exps` gives for own against others.
        lse_G: the same for each of others against the whole of own's modality.
        The others: as in `log_sum_exps`.
    """
    scores_BG = _scores(own_BE, others_GE, temperature, start, ids_G2)
    # Never positive but by rounding, which at a low temperature is large where features were computed twice.
    from_own_BG, from_others_BG = ((scores_BG - lse).clamp(max=0).exp() for lse in (lse_B[:, None], lse_G))
    weight_BG = (from_own_BG + from_others_BG) / 2 - _positives(scores_BG, start).float()
    return weight_BG @ others_GE.float() / temperature


def _scores(own_BE: Tensor, others_GE: Tensor, temperature: Tensor, start: int, ids_G2: Tensor | None) -> Tensor:
    scores_BG = own_BE.float() @ others_GE.float().T / temperature
    if ids_G2 is None:
        return scores_BG
    shared_BG = (ids_G2[start : start + len(own_BE), None] == ids_G2).any(-1)
    return scores_BG.masked_fill(shared_BG & ~_positives(scores_BG, start), float("-inf"))


def _positives(scores_BG: Tensor, start: int) -> Tensor:
    rows, columns = (torch.arange(size, device=scores_BG.device) for size in scores_BG.shape)
    return columns == rows[:, None] + start


def _log_sum_exps_in_triton(*args: object) -> Tensor:
    from mvlm.kernels.contrastive_triton import log_sum_exps

    return log_sum_exps(*args)


def _gradient_in_triton(*args: object) -> Tensor:
    from mvlm.kernels.contrastive_triton import contrastive_gradient

    return contrastive_gradient(*args)


def _why_not(own_BE: Tensor, others_GE: Tensor, *_: object) -> str | None:
    if own_BE.shape[1] > WIDEST:
        return f"the contrastive width {own_BE.shape[1]} is above {WIDEST}"
    return probes.not_for_triton(own_BE, others_GE)


def _pays(own_BE: Tensor, others_GE: Tensor, *_: object) -> str | None:
    return None if len(others_GE) >= PAYS else f"it pays from {PAYS} pairs in the global batch on"


LOG_SUM_EXPS = Op(
    "log_sum_exps",
    Implementation("triton", _log_sum_exps_in_triton, probes.triton, _why_not, _pays, probes.triton_version),
    Implementation("torch", log_sum_exps, version=probes.torch_version),
)
CONTRASTIVE = Op(
    "contrastive",
    Implementation("triton", _gradient_in_triton, probes.triton, _why_not, _pays, probes.triton_version),
    Implementation("torch", contrastive_gradient, version=probes.torch_version),
)


def temperature_gradient(
    image_BE: Tensor, text_GE: Tensor, temperature: Tensor, start: int, lse_G2: Tensor, ids_G2: Tensor | None
) -> Tensor:
    """The own images' part of the gradient at the temperature of the sum over the G pairs, a scalar.

    s = image · text / T, hence it is -sum_i image_i · dL/dimage_i / T, with each similarity in one micro-batch's rows.

    Args: as for `GatheredFeatures`, and `contrastive_share`.
    """
    lse_image_G, lse_text_G = lse_G2.unbind(1)
    own = slice(start, start + len(image_BE))
    at_image_BE = CONTRASTIVE(image_BE, text_GE, temperature, start, lse_image_G[own], lse_text_G, ids_G2)
    return -(at_image_BE * image_BE.float()).sum() / temperature.squeeze()


class _ContrastiveShare(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_BE: Tensor, text_BE: Tensor, temperature: Tensor, gathered: GatheredFeatures, start: int
    ) -> Tensor:
        ctx.save_for_backward(image_BE, text_BE, temperature)
        ctx.gathered, ctx.start = gathered, start
        positive_B = (image_BE.float() * text_BE.float()).sum(-1) / temperature
        return gathered.lse_G2[start : start + len(image_BE)].mean(1).sum() - positive_B.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image_BE, text_BE, temperature = ctx.saved_tensors
        whole: GatheredFeatures = ctx.gathered
        lse_image_G, lse_text_G = whole.lse_G2.unbind(1)
        rows = slice(ctx.start, ctx.start + len(image_BE))

        def gradient(own_BE: Tensor, others_GE: Tensor, lse_own_G: Tensor, lse_others_G: Tensor) -> Tensor:
            return CONTRASTIVE(own_BE, others_GE, temperature, ctx.start, lse_own_G[rows], lse_others_G, whole.ids_G2)

        at_image_BE = gradient(image_BE, whole.text_GE, lse_image_G, lse_text_G)
        at_text_BE = gradient(text_BE, whole.image_GE, lse_text_G, lse_image_G)
        own_share = whole.temperature_gradient.expand_as(temperature) * len(image_BE) / len(whole.lse_G2)
        gradients = (at_image_BE.to(image_BE.dtype), at_text_BE.to(text_BE.dtype), own_share.to(temperature.dtype))
        return (*(gradient * grad for gradient in gradients), None, None)


def contrastive_share(
    image_BE: Tensor, text_BE: Tensor, temperature: Tensor, gathered: GatheredFeatures, start: int
) -> Tensor:
    """The sum over the own pairs of both directions' mean, with the gradient of the sum over all G pairs.

    The own features' gradient is the whole of it; the temperature's is the own pairs' equal share of it, so that its
    sign is the same in every micro-batch.

    Args:
        image_BE, text_BE: the own pairs' features, pairs `start` to `start + B` of the global batch.
        temperature: T, one value.
    """
    return _ContrastiveShare.apply(image_BE, text_BE, temperature, gathered, start)
