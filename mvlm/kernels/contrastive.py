"""The contrastive loss's share of one micro-batch: its own rows and columns of the global batch's similarities.

With s_ij = image_i · text_j / T, the softmax loss of G pairs is the mean over i of

    (log sum_j exp s_ij - s_ii) / 2  +  (log sum_j exp s_ji - s_ii) / 2,

the sums over j without pairs of the same image or caption as i. Once the log-sum-exps of all rows and columns are
known, the gradient at image i needs row i alone, and that at text i column i: no micro-batch computes more than its own
rows and columns. Sums over j are taken block by block of the others, so that these need never be in one place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mvlm.kernels import probes
from mvlm.kernels.dispatch import Implementation, Op

PAYS = 65_536
"""Number of others from which the streaming kernels are worth it; below, the B x U similarities are small."""

WIDEST = 512
"""Contrastive width that the Triton kernels hold at once."""

AT_ONCE = 1 << 22
"""The most similarities that torch computes at once, unless one row has more: 16 MiB."""


def log_sum_exps(
    own_BE: Tensor,
    others_UE: Tensor,
    temperature: Tensor,
    start: int,
    own_ids_B2: Tensor | None = None,
    ids_U2: Tensor | None = None,
) -> Tensor:
    """log sum_j exp(own_i · others_j / T), fp32, without gradient; minus infinity if nothing is summed.

    Args:
        own_BE: the micro-batch's own features of one modality.
        others_UE: U pairs' features of the other.
        temperature: T, one value.
        start: others_(start + i) is own_i's positive; if that is outside the U pairs, it is not among them.
        own_ids_B2, ids_U2: image and caption of each pair; pairs that share one are left out unless they are the
            positive.
    """
    parts = [
        _scores(own_BE[rows], others_UE, temperature, start + rows.start, _of(own_ids_B2, rows), ids_U2).logsumexp(1)
        for rows in row_blocks(len(own_BE), len(others_UE))
    ]
    return torch.cat(parts)


def contrastive_gradient(
    own_BE: Tensor,
    others_UE: Tensor,
    temperature: Tensor,
    start: int,
    lse_B: Tensor,
    lse_U: Tensor,
    own_ids_B2: Tensor | None = None,
    ids_U2: Tensor | None = None,
) -> Tensor:
    """What the U others add to the gradient at own_BE of the sum over the G pairs: sum_j w_ij others_j / T,
    where w_ij = (exp(s_ij - lse_i) + exp(s_ij - lse_j)) / 2, less one at the positive.

    Args:
        lse_B: what `log_sum_exps` gives for own against all G others.
        lse_U: the same for each of others against the whole of own's modality.
        The others: as in `log_sum_exps`.
    """
    parts = []
    for rows in row_blocks(len(own_BE), len(others_UE)):
        first = start + rows.start
        scores_BU = _scores(own_BE[rows], others_UE, temperature, first, _of(own_ids_B2, rows), ids_U2)
        # Positive only by rounding, which at a low temperature is large if features were computed twice.
        from_own_BU, from_others_BU = ((scores_BU - lse).clamp(max=0).exp() for lse in (lse_B[rows, None], lse_U))
        weight_BU = (from_own_BU + from_others_BU) / 2
        weight_BU.diagonal(first).sub_(1)
        parts.append(weight_BU @ others_UE.float() / temperature)
    return torch.cat(parts)


def row_blocks(own: int, others: int) -> Iterator[slice]:
    """Slices of own rows, one at least, each with no more than `AT_ONCE` similarities."""
    size = max(1, AT_ONCE // max(1, others))
    return (slice(first, min(first + size, own)) for first in range(0, max(1, own), size))


def shared(own_ids_B2: Tensor, ids_U2: Tensor) -> Tensor:
    """Which pairs have the same image or the same caption -> bool BU."""
    return (own_ids_B2[:, None] == ids_U2).any(-1)


def positives(scores_BU: Tensor, start: int) -> Tensor:
    """bool BU, True at column start + i of row i."""
    rows, columns = (torch.arange(size, device=scores_BU.device) for size in scores_BU.shape)
    return columns == rows[:, None] + start


def _scores(
    own_BE: Tensor, others_UE: Tensor, temperature: Tensor, start: int, own_ids_B2: Tensor | None, ids_U2: Tensor | None
) -> Tensor:
    scores_BU = own_BE.float() @ others_UE.float().T / temperature
    if own_ids_B2 is None or ids_U2 is None:
        return scores_BU
    excluded_BU = shared(own_ids_B2, ids_U2)
    excluded_BU.diagonal(start).fill_(False)
    return scores_BU.masked_fill_(excluded_BU, float("-inf"))


def _of(ids_B2: Tensor | None, rows: slice) -> Tensor | None:
    return None if ids_B2 is None else ids_B2[rows]


def _log_sum_exps_in_triton(*args: object) -> Tensor:
    from mvlm.kernels.contrastive_triton import log_sum_exps

    return log_sum_exps(*args)


def _gradient_in_triton(*args: object) -> Tensor:
    from mvlm.kernels.contrastive_triton import contrastive_gradient

    return contrastive_gradient(*args)


def _why_not(own_BE: Tensor, others_UE: Tensor, *_: object) -> str | None:
    if own_BE.shape[1] > WIDEST:
        return f"the contrastive width {own_BE.shape[1]} is above {WIDEST}"
    return probes.not_for_triton(own_BE, others_UE)


def _pays(own_BE: Tensor, others_UE: Tensor, *_: object) -> str | None:
    return None if len(others_UE) >= PAYS else f"it pays only with {PAYS} pairs or more in one place"


LOG_SUM_EXPS = Op(
    "log_sum_exps",
    Implementation("triton", _log_sum_exps_in_triton, probes.triton, _why_not, _pays, library="triton"),
    Implementation("torch", log_sum_exps),
)
CONTRASTIVE = Op(
    "contrastive",
    Implementation("triton", _gradient_in_triton, probes.triton, _why_not, _pays, library="triton"),
    Implementation("torch", contrastive_gradient),
)
