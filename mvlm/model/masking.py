"""Seeded masks of patches and tokens, and the random streams of everything that is random in a sample.

Legend as in mvlm/batch.py: N patches, L text tokens.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from enum import IntEnum
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from mvlm.batch import IGNORE
from mvlm.config.schema import Objectives
from mvlm.errors import UserError

Rounding = Literal["ceil", "floor", "nearest"]

_ROUNDINGS = {"ceil": ROUND_CEILING, "floor": ROUND_FLOOR, "nearest": ROUND_HALF_EVEN}
_UINT64 = (1 << 64) - 1


class Purpose(IntEnum):
    """What a random stream is drawn for; each has its own, so that no draw shifts another."""

    CAPTION = 0
    VIEW = 1
    MASKED_VIEW = 2
    PATCHES = 3
    TOKENS = 4
    REPLACEMENT = 5
    CLUSTERS = 6


class _Key(ISeedSequence):
    """A key as it is: given one directly, Philox takes three times as long, for a system seed that it then drops."""

    def __init__(self, seed: int, purpose: int):
        self._key = np.array([seed & _UINT64, purpose], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self._key


def generator(seed: int, purpose: int, epoch: int, occurrence: int, sample: int) -> np.random.Generator:
    """The random stream of one sample: a function of its arguments alone, independent for any two that differ.

    The counter-based Philox keeps no state between samples. Its lowest counter word is left to the stream,
    which can thus draw 2**64 blocks before it runs into another stream.
    """
    counter = np.array([0, occurrence, epoch, sample], dtype=np.uint64)
    philox = np.random.Philox(_Key(seed, purpose), counter=counter)  # type: ignore[arg-type]  # numpy's stub is too strict
    return np.random.Generator(philox)


@lru_cache(1024)
def exact_count(ratio: float, total: int, rounding: Rounding) -> int:
    """`ratio * total` rounded, with the ratio as it is written: the binary product of 0.28 and 25 exceeds 7."""
    return int((Decimal(repr(ratio)) * total).to_integral_value(_ROUNDINGS[rounding]))


def block_grid(grid: tuple[int, int], block: int) -> tuple[int, int]:
    """Rows and columns of mask blocks in a grid of patches.

    Raises:
        UserError: the blocks do not tile the grid.
    """
    rows, cols = grid
    if rows % block or cols % block:
        raise UserError(
            f"objectives.image_mask_block = {block} does not divide the image's grid of {rows} x {cols} patches: "
            "choose a block that divides both, or another model.image_size."
        )
    return rows // block, cols // block


def patch_mask(rng: np.random.Generator, grid: tuple[int, int], objectives: Objectives) -> np.ndarray:
    """Mask whole blocks of patches.

    Returns:
        bool [N], row by row, True = masked: exactly `image_mask_ratio` of the blocks, rounded; at least one and, if
        there are several, not all.

    Raises:
        UserError: the blocks do not tile the grid.
    """
    rows, cols = block_grid(grid, objectives.image_mask_block)
    blocks = rows * cols
    wanted = exact_count(objectives.image_mask_ratio, blocks, objectives.image_mask_rounding)
    masked = np.zeros(blocks, dtype=bool)
    masked[rng.permutation(blocks)[: max(1, min(wanted, blocks - 1))]] = True
    return masked[_block_of_patch(rows, cols, objectives.image_mask_block)]


@lru_cache(64)
def _block_of_patch(rows: int, cols: int, block: int) -> np.ndarray:
    """The block of each patch, int64 [N], in a grid of so many blocks."""
    return np.arange(rows * cols).reshape(rows, cols).repeat(block, axis=0).repeat(block, axis=1).ravel()


def token_mask(
    rng: np.random.Generator,
    tokens_L: np.ndarray,
    special_L: np.ndarray,
    objectives: Objectives,
    mask_id: int,
    random_ids: np.ndarray,
    shares: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask tokens of one sentence as BERT does, but an exact number of them.

    Args:
        tokens_L: int64 ids.
        special_L: bool, True = never masked.
        random_ids: int64, the ordinary tokens of the vocabulary.
        shares: probabilities that a masked token is shown as `mask_id`, and as one of `random_ids`; otherwise it is
            shown as it is. None = as `objectives` says.

    Returns:
        The sentence as shown [L] and the targets [L], both int64; IGNORE for tokens that are not masked.
    """
    mask_share, random_share = shares or (objectives.text_mask_token, objectives.text_mask_random)
    ordinary = (~special_L).nonzero()[0]
    wanted = exact_count(objectives.text_mask_ratio, len(ordinary), "nearest")
    count = min(max(objectives.text_mask_minimum, wanted), len(ordinary))
    places = rng.permutation(ordinary)[:count]
    draw = rng.random(count)
    replacement = random_ids[rng.integers(len(random_ids), size=count)]

    shown = np.where(draw < mask_share + random_share, replacement, tokens_L[places])
    shown[draw < mask_share] = mask_id
    masked_L = tokens_L.copy()
    masked_L[places] = shown
    target_L = np.full_like(tokens_L, IGNORE)
    target_L[places] = tokens_L[places]
    return masked_L, target_L
