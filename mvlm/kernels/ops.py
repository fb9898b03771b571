"""Every operation with several implementations, by the name it has in the run TOML's `[kernels]`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mvlm.kernels.attention import attention
from mvlm.kernels.dispatch import Op
from mvlm.kernels.layer_norm import layer_norm
from mvlm.kernels.linear import gelu_linear, linear
from mvlm.kernels.word_loss import word_loss

OPS: dict[str, Op] = {op.name: op for op in (attention, linear, gelu_linear, layer_norm, word_loss)}


def _attention(make: Callable[..., Tensor]) -> tuple:
    return make(2, 2, 9, 16), make(2, 2, 9, 16), make(2, 2, 9, 16)


def _linear(make: Callable[..., Tensor]) -> tuple:
    return make(8, 16), make(32, 16), make(32)


EXAMPLES: dict[str, Callable[[Callable[..., Tensor]], tuple]] = {
    "attention": _attention,
    "linear": _linear,
    "gelu_linear": _linear,
    "layer_norm": lambda make: (make(8, 16), make(16), make(16), 1e-6),
    "word_loss": lambda make: (*_linear(make), make(8).long()),
}


def example(name: str, device: torch.device, dtype: torch.dtype) -> tuple:
    """Arguments of an operation as training gives them but for their size, to ask who would compute them."""
    return EXAMPLES[name](lambda *shape: torch.zeros(shape, device=device, dtype=dtype))
