"""The operations of the losses by the names that a run's `[kernels]` table has for them."""

from __future__ import annotations

from mvlm.kernels.contrastive import CONTRASTIVE, LOG_SUM_EXPS
from mvlm.kernels.negatives import NEGATIVES
from mvlm.kernels.patch_l1 import PATCH_L1

OPS = {op.name: op for op in (PATCH_L1, LOG_SUM_EXPS, CONTRASTIVE, NEGATIVES)}
