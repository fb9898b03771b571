"""Numbers kept on each device: every copy from the host's memory would make it wait for the device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values in fp32, one tensor for all who ask: not to be changed."""
    return torch.tensor(values, device=device)
