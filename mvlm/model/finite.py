"""Weights that are no numbers are refused where they are read: training would blame its samples for them."""

from __future__ import annotations

import torch
from torch import Tensor

from mvlm.errors import UserError


def require_finite(name: str, weight: Tensor, where: str) -> None:
    """Raises: UserError: a weight holds NaN or infinity.

    Args:
        where: the file, or whose weights they are.
    """
    finite = torch.isfinite(weight)
    if not finite.all():
        kind = "NaN" if torch.isnan(weight).any() else "infinity"
        raise UserError(
            f"{name} of {where} holds {kind} in {int((~finite).sum())} of its {weight.numel()} values: "
            "use another checkpoint."
        )
