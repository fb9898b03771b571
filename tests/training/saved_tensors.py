"""An engine's whole tensors, assembled from what each rank would save."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mvlm.runtime import dist
from mvlm.training.engine import Engine


def whole_tensors(engine: Engine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each parameter's name and its fp32 weight, moments and average, as copies in the CPU's memory.

    All ranks must call this. An element that no rank has is NaN.
    """
    own = [
        (name, key, part.elements.detach().cpu().clone().numpy(), part.start, part.shape, part.cut)  # pickled quickly
        for name, parts in engine.own_parts()
        for key, part in parts.items()
    ]
    found: dict[str, dict[str, Tensor]] = {}
    for name, key, elements, start, shape, cut in (piece for of_rank in dist.gather_objects(own) for piece in of_rank):
        whole = found.setdefault(name, {}).setdefault(key, torch.full((math.prod(shape),), math.nan).view(shape))
        first, places = cut.positions(start, start + len(elements), whole.numel())
        whole.view(-1)[first:][places] = torch.from_numpy(elements)
    yield from ((name, found[name]) for name, _ in engine.parameters())
