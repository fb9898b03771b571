"""Numbers kept on each device: every copy from the host's memory would make the host wait for the device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values in fp32, in one tensor for all callers, which must not be changed."""
    return torch.tensor(values, device=device)
