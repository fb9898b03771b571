"""Every operation with several implementations, by the name it has in the run TOML's `[kernels]`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mvlm.kernels.attention import attention
from mvlm.kernels.contrastive import CONTRASTIVE, LOG_SUM_EXPS
from mvlm.kernels.dispatch import Op
from mvlm.kernels.fusion import FUSION
from mvlm.kernels.gelu_linear import gelu_linear
from mvlm.kernels.layer_norm import layer_norm, residual_norm
from mvlm.kernels.linear import linear
from mvlm.kernels.negatives import NEGATIVES
from mvlm.kernels.packed_attention import PACKED_ATTENTION, Packed
from mvlm.kernels.patch_l1 import PATCH_L1
from mvlm.kernels.views import VIEWS, Views

_PASSES = (FUSION, VIEWS)
_LAYERS = (attention, PACKED_ATTENTION, linear, gelu_linear, layer_norm, residual_norm)
_LOSSES = (PATCH_L1, LOG_SUM_EXPS, CONTRASTIVE, NEGATIVES)
OPS: dict[str, Op] = {op.name: op for op in (*_PASSES, *_LAYERS, *_LOSSES)}


def _attention(make: Callable[..., Tensor]) -> tuple:
    # An image attends to itself, which costs most; with few keys, another implementation may be taken.
    return make(2, 2, 197, 16), make(2, 2, 197, 16), make(2, 2, 197, 16)


def _linear(make: Callable[..., Tensor]) -> tuple:
    return make(8, 16), make(32, 16), make(32)


def _packed_attention(make: Callable[..., Tensor]) -> tuple:
    row_T = torch.arange(8, device=make().device)
    starts = torch.tensor([0, 4, 8, 8], dtype=torch.int32, device=row_T.device)  # two texts, and no filling
    return make(8, 2, 16), make(8, 2, 16), make(8, 2, 16), Packed.of(row_T, starts, make(2, 4) == 0, 1)


def _patch_l1(make: Callable[..., Tensor]) -> tuple:
    image, patch_M = make(2, 3, 4, 4).byte(), torch.arange(8, device=make().device)
    return make(8, 12), image, patch_M, 2, make(3).float(), make(3).float() + 1, False


def _log_sum_exps(make: Callable[..., Tensor]) -> tuple:
    return make(8, 16), make(8, 16), make().float() + 1, 0


def _contrastive(make: Callable[..., Tensor]) -> tuple:
    return *_log_sum_exps(make), make(8).float(), make(8).float()


def _negatives(make: Callable[..., Tensor]) -> tuple:
    return make(8, 16), make(8, 16), make().float() + 1, torch.arange(8, device=make().device), 0, 4, 0, None, False


EXAMPLES: dict[str, Callable[[Callable[..., Tensor]], tuple]] = {
    "fusion": lambda make: (None, None),  # no encoder and no stream, which all implementations accept
    "views": lambda make: (lambda views: [], Views(True, True)),
    "attention": _attention,
    "linear": _linear,
    "gelu_linear": _linear,
    "layer_norm": lambda make: (make(8, 16), make(16), make(16), 1e-6),
    "residual_norm": lambda make: (make(8, 16), make(8, 16), make(16), make(16), 1e-6),
    "packed_attention": _packed_attention,
    "patch_l1": _patch_l1,
    "log_sum_exps": _log_sum_exps,
    "contrastive": _contrastive,
    "negatives": _negatives,
}


def example(name: str, device: torch.device, dtype: torch.dtype) -> tuple:
    """Arguments of an operation like those in training except for their size, to ask what would compute them."""
    return EXAMPLES[name](lambda *shape: torch.zeros(shape, device=device, dtype=dtype))
