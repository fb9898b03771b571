"""The extension of mvlm/data/native; for its only callers, decoding.py and augmenting.py."""

import numpy as np

def header(data: bytes | memoryview) -> tuple[int, int, bool]:
    """Width, height, and whether `view` shows this JPEG as it should look; ValueError with libjpeg's words."""

def view(
    data: bytes | memoryview, box: tuple[int, int, int, int], shrink: int, flip: bool, size: int, out: np.ndarray
) -> bool:
    """Decode a part to `out`, uint8 [3, size, size]; False if it is for another decoder.

    It is decoded at 1 / `shrink` of its size, and resized from that.
    """
