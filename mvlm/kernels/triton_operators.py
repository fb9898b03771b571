"""Makes operators of torch from our Triton kernels."""

from __future__ import annotations

from typing import Any

from torch.library import triton_op
from torch.library import wrap_triton as _wrap_triton

from mvlm.kernels.probes import triton_interprets

__all__ = ["triton_op", "wrap_triton"]


def wrap_triton(kernel: Any) -> Any:
    """A kernel that torch's compiler can look into. An interpreted one stays as it is, since torch 2.11 refuses it."""
    return kernel if triton_interprets() else _wrap_triton(kernel)
