"""Whether Triton can serve: on this machine, and for these tensors."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import torch
from torch import Tensor


def why_no_triton() -> str | None:
    """Why no Triton kernel runs on this machine, None where they do."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (torch.cuda.is_available() or interpreted()):
        return "there is no GPU"
    return None


def why_not_in_triton(*tensors: Tensor) -> str | None:
    """Why a Triton kernel cannot take these tensors of numbers, None where it can."""
    if not (interpreted() or all(tensor.is_cuda for tensor in tensors)):
        return "the tensors are on the CPU"
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return "it computes in fp32"
    return None


def interpreted() -> bool:
    """Whether Triton was told to run kernels on the CPU, which its interpreter does for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_version() -> str:
    """The version of Triton that is installed, or an empty string."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""
