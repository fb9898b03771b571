"""Token sequences padded to tensors of one length. Loader processes, which do without torch, do not import this."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mvlm.data.samples.captions import FINE, CaptionTokenizer, Rounding


class BatchTokenizer(CaptionTokenizer):
    """Captions to padded tensors."""

    def batch(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """text_BL int64 and valid_BL bool, padded as in training."""
        return pad([self.encode(caption) for caption in captions], self.pad_id, self.length, self.rounding)


def pad(texts: Sequence[np.ndarray], pad_id: int, text_length: int, rounding: Rounding = FINE) -> tuple[Tensor, Tensor]:
    """Pad token sequences of at most `text_length` to one length.

    Returns:
        text_BL int64 and valid_BL bool, False = padding.
    """
    longest = max(len(text) for text in texts)
    length = min(round_up(longest, rounding.text), text_length)
    text_BL = np.full((len(texts), length), pad_id, dtype=np.int64)
    valid_BL = np.zeros((len(texts), length), dtype=bool)
    for row, text in enumerate(texts):
        text_BL[row, : len(text)] = text
        valid_BL[row, : len(text)] = True
    return torch.from_numpy(text_BL), torch.from_numpy(valid_BL)


def round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
