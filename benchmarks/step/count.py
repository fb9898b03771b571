"""Counting the matrix products that really run, with torch's counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products for each of the forward pass; the scores that kernels compute a second time are not counted."""
    return 2 * sdpa_flop_count(query, key, value)


_FORWARD = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_COUNTS = {getattr(_aten, f"_scaled_dot_product_{name}"): _attention for name in _FORWARD}
_COUNTS |= {getattr(_aten, f"_scaled_dot_product_{name}_backward"): _attention_backward for name in _FORWARD}
"""torch's counter takes attention on a CPU for nothing."""


def count_flops(work: Callable[[], object]) -> int:
    """Operations of the matrix products in `work`, run once, uncompiled."""
    with FlopCounterMode(display=False, custom_mapping=_COUNTS) as counter:
        work()
    return counter.get_total_flops()
