"""The work of a loader's thread or process: a few samples of a micro-batch, their images written into its buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from mvlm.data.rows import Sample

CHUNK = 8
"""Samples prepared at a time: enough to make handing them over cheap, few enough to keep all workers busy."""

Draw = tuple[int, int, int]
"""Position, row and occurrence."""

S_co = TypeVar("S_co", bound=Sample, covariant=True)
S = TypeVar("S", bound=Sample)


class Samples(Protocol[S_co]):
    def sample(self, position: int, row: int, occurrence: int, out_VCHW: np.ndarray) -> S_co: ...

    def bring(self, row: int) -> None: ...


def prepare(dataset: Samples[S], draws: Sequence[Draw], images_VBCHW: np.ndarray) -> list[S]:
    """The samples, their images in `images_VBCHW`, uint8."""
    return [dataset.sample(*draw, images_VBCHW[:, at]) for at, draw in enumerate(draws)]
