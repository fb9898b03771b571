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

def warp(
    image: np.ndarray, size: int, matrix: tuple[float, float, float, float, float, float], out: np.ndarray
) -> None:
    """Write `image`, uint8 [3, size, size], to `out`, seen through a matrix as of `augmenting.Matrix`."""

def sharpen(image: np.ndarray, size: int, factor: float, out: np.ndarray) -> None:
    """Write `image` to `out`, sharper where `factor` is above 1, smoother where it is below."""
