"""Memory that processes share, as an array."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np


def mapped(file: int, shape: Sequence[int]) -> np.ndarray:
    """The memory of a descriptor as uint8 of that shape; it stays when the descriptor is closed."""
    return np.frombuffer(mmap.mmap(file, int(np.prod(shape))), np.uint8).reshape(shape)
