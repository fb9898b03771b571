"""Which words are masked when their reconstruction is scored: fixed, so that all conditions see the same task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mvlm.batch import IGNORE
from mvlm.config.schema import Objectives
from mvlm.data.samples.captions import CaptionTokenizer
from mvlm.data.samples.evaluation import EvalDataset
from mvlm.errors import UserError
from mvlm.model import masking


@dataclass(frozen=True)
class MaskedText:
    """B sentences with masked words, and the targets to predict."""

    caption_B: np.ndarray  # which captions they are
    masked_text_BL: Tensor
    valid_BL: Tensor
    target_BL: Tensor  # the masked token's id or IGNORE


class MaskedWords(Protocol):
    """Sentences to be reconstructed; `whole` = a sentence's masked tokens are one word, right only together."""

    whole: bool

    def __len__(self) -> int: ...

    def items(self, indices: np.ndarray) -> MaskedText: ...


class RandomWords:
    """Every caption once, its tokens masked as in training or, with `plain`, for people to read: always by the mask
    token, and never punctuation."""

    whole = False

    def __init__(self, dataset: EvalDataset, objectives: Objectives, seed: int, plain: bool = False) -> None:
        self.dataset, self.tokens = dataset, dataset.tokens
        self.objectives, self.seed = objectives, seed
        self.plain = plain

    def __len__(self) -> int:
        return len(self.dataset.captions)

    def items(self, indices: np.ndarray) -> MaskedText:
        text_BL, valid_BL = self.dataset.texts(indices.tolist())
        masked = [
            mask_tokens(self.tokens, self.objectives, self.seed, text_L, int(caption), **self._plainly(text_L, caption))
            for text_L, caption in zip(text_BL.numpy(), indices, strict=True)
        ]
        masked_BL, target_BL = (torch.from_numpy(np.stack(rows)) for rows in zip(*masked, strict=True))
        return MaskedText(indices, masked_BL, valid_BL, target_BL)

    def _plainly(self, text_L: np.ndarray, caption: int) -> dict[str, Any]:
        if not self.plain:
            return {}
        spelled = self.dataset.captions[caption]
        spared_L = np.zeros(len(text_L), dtype=bool)
        for place, (first, last) in enumerate(self.tokens.spans(spelled)):
            spared_L[place] = not any(character.isalnum() for character in spelled[first:last])
        all_spared = (spared_L | self.tokens.special(text_L)).all()  # a caption only of signs, such as emoji
        return {"shares": (1.0, 0.0), "spared_L": None if all_spared else spared_L}


def mask_tokens(
    tokens: CaptionTokenizer,
    objectives: Objectives,
    seed: int,
    text_L: np.ndarray,
    sample: int,
    occurrence: int = 0,
    shares: tuple[float, float] | None = None,
    spared_L: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a sentence by a separate random stream for each sample and occurrence; returns what `token_mask` does.

    Args:
        shares: of masked tokens, those shown as the mask token and those shown as another one; None = as in training.
        spared_L: True = never masked, like special tokens.
    """
    stream = masking.generator(seed, masking.Purpose.TOKENS, 0, occurrence, sample)
    spared_L = tokens.special(text_L) if spared_L is None else tokens.special(text_L) | spared_L
    return masking.token_mask(stream, text_L, spared_L, objectives, tokens.mask_id, tokens.ordinary_ids, shares)


class ChosenWords:
    """Every occurrence of some words in the captions, one at a time, all its tokens shown as the mask token.

    Raises:
        UserError: no caption holds any of the words.
    """

    whole = True

    def __init__(self, dataset: EvalDataset, words: Sequence[str]) -> None:
        self.dataset = dataset
        self.found = list(_occurrences(dataset, words))
        if not self.found:
            raise UserError(
                f"None of the {len(dataset.captions)} captions holds {', '.join(words)} within its first "
                f"{dataset.tokens.length} tokens: give words that occur in them."
            )

    def __len__(self) -> int:
        return len(self.found)

    def items(self, indices: np.ndarray) -> MaskedText:
        captions = np.array([self.found[index][0] for index in indices])
        text_BL, valid_BL = self.dataset.texts(captions.tolist())
        masked_BL = torch.zeros_like(valid_BL)
        for row, index in enumerate(indices):
            masked_BL[row, torch.tensor(self.found[index][1])] = True
        masked_text_BL = text_BL.masked_fill(masked_BL, self.dataset.tokens.mask_id)
        return MaskedText(captions, masked_text_BL, valid_BL, text_BL.masked_fill(~masked_BL, IGNORE))


def _occurrences(dataset: EvalDataset, words: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """(caption, places of the tokens that spell the word), in the order of the data; truncated words are left out."""
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
    for index, caption in enumerate(dataset.captions):
        matches = [match.span() for match in pattern.finditer(caption)]
        if not matches:
            continue
        spans = dataset.tokens.spans(caption)
        end_of_text = max(end for _, end in spans)
        for start, end in matches:
            if end <= end_of_text:
                yield index, [i for i, (first, last) in enumerate(spans) if first < end and last > start]
