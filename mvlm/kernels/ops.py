"""Every operation with several implementations, by the name it has in the run TOML's `[kernels]`."""

from __future__ import annotations

from mvlm.kernels.attention import attention
from mvlm.kernels.dispatch import Op
from mvlm.kernels.layer_norm import layer_norm
from mvlm.kernels.linear import gelu_linear, linear
from mvlm.kernels.word_loss import word_loss

OPS: dict[str, Op] = {op.name: op for op in (attention, linear, gelu_linear, layer_norm, word_loss)}
