"""The sigmoid contrastive loss of own rows and a block of others (Zhai et al., "SigLIP", ICCV 2023, algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.kernels.contrastive import positives, row_blocks, shared


class SigmoidTerms(NamedTuple):
    """What a block of others adds; all fp32."""

    loss_B: Tensor  # sum_j -log sigmoid(z_ij s_ij)
    gradient_BE: Tensor  # of that at own_BE, sum_j w_ij others_j / T
    weight_B: Tensor  # sum_j w_ij, the gradient at the bias


def sigmoid_terms(
    own_BE: Tensor,
    others_UE: Tensor,
    temperature: Tensor,
    bias: Tensor,
    start: int,
    own_ids_B2: Tensor | None = None,
    ids_U2: Tensor | None = None,
) -> SigmoidTerms:
    """With s_ij = own_i · others_j / T + bias and z_ij = 1 at the positive, -1 elsewhere: every pair of the block is
    judged by itself, so that w_ij = sigmoid(s_ij), less one at the positive, needs no other block.

    Args:
        As for `mvlm.kernels.contrastive.log_sum_exps`; bias is one value.
    """
    parts = []
    for rows in row_blocks(len(own_BE), len(others_UE)):
        scores_BU = own_BE[rows].float() @ others_UE.float().T / temperature + bias
        positive_BU = positives(scores_BU, start + rows.start)
        loss_BU = F.softplus(torch.where(positive_BU, -scores_BU, scores_BU))
        weight_BU = torch.where(positive_BU, -torch.sigmoid(-scores_BU), torch.sigmoid(scores_BU))
        if own_ids_B2 is not None and ids_U2 is not None:
            left_out_BU = shared(own_ids_B2[rows], ids_U2) & ~positive_BU
            loss_BU, weight_BU = (x.masked_fill(left_out_BU, 0) for x in (loss_BU, weight_BU))
        parts.append((loss_BU.sum(1), weight_BU @ others_UE.float() / temperature, weight_BU.sum(1)))
    return SigmoidTerms(*(torch.cat(part) for part in zip(*parts, strict=True)))
