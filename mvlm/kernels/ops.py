"""Every operation with several implementations, by the name it has in the run TOML's `[kernels]`."""

from __future__ import annotations

from mvlm.kernels.attention import attention
from mvlm.kernels.contrastive import CONTRASTIVE, LOG_SUM_EXPS
from mvlm.kernels.dispatch import Op
from mvlm.kernels.layer_norm import layer_norm
from mvlm.kernels.linear import gelu_linear, linear
from mvlm.kernels.negatives import NEGATIVES
from mvlm.kernels.packed_attention import PACKED_ATTENTION
from mvlm.kernels.patch_l1 import PATCH_L1
from mvlm.kernels.word_loss import word_loss

_LAYERS = (attention, PACKED_ATTENTION, linear, gelu_linear, layer_norm)
_LOSSES = (word_loss, PATCH_L1, LOG_SUM_EXPS, CONTRASTIVE, NEGATIVES)
OPS: dict[str, Op] = {op.name: op for op in (*_LAYERS, *_LOSSES)}
