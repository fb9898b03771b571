"""Captions as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from mvlm.errors import UserError


@dataclass(frozen=True)
class Rounding:
    """How far sizes that follow from captions are filled up, so that few occur."""

    text: int  # tokens: texts are padded to a multiple of it
    masked: int  # tokens: the masked ones of a sentence are filled up to a multiple of it
    packed: int  # bits: tokens without padding are filled up by less than one in 2 to the power of it
    predicted: int  # bits: likewise the masked tokens of all sentences


FINE = Rounding(text=8, masked=4, packed=5, predicted=32)
"""Tensor cores want multiples of 8; the masked tokens are as many as there are."""
COARSE = Rounding(text=16, masked=8, packed=3, predicted=3)
"""For compiled steps, which compile, and capture, each size by itself."""


def round_in_bits(count: int, bits: int) -> int:
    """Up by less than one in 2 to the power of `bits`."""
    step = 1 << max(count.bit_length() - bits - 1, 0)
    return -(-count // step) * step


class CaptionTokenizer:
    """Captions to token ids, safe to call from several threads.

    It holds its own copy of the tokenizer with the truncation set once: the transformers wrapper sets it
    anew at each call, which fails when another thread is encoding.

    Attributes:
        length: tokens of a caption at most, special ones included.
        pad_id, mask_id: ids of these special tokens.
        rounding: what batches of its captions are filled up to.
        special_ids, ordinary_ids: int64, the vocabulary in two parts.
    """

    def __init__(self, tokenizer: Any, length: int):
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UserError(
                f"The tokenizer {type(tokenizer).__name__} has no tokenizer.json form: "
                'set data.tokenizer to one that has, or to "auto".'
            )
        self._encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encoder.no_padding()
        self._encoder.enable_truncation(length)
        self.length, self.rounding = length, FINE
        self.pad_id = int(tokenizer.pad_token_id)
        self.mask_id = int(tokenizer.mask_token_id)
        self.special_ids = np.array(sorted(tokenizer.all_special_ids), dtype=np.int64)
        known = np.array(sorted(set(tokenizer.get_vocab().values())), dtype=np.int64)
        self.ordinary_ids = np.setdiff1d(known, self.special_ids)
        self._is_special = np.zeros(known.max() + 1, dtype=bool)
        self._is_special[self.special_ids] = True

    def encode(self, caption: str) -> np.ndarray:
        """int64 [L], cut to `length`, with the special tokens that begin and end a sentence."""
        return np.array(self._encoded(caption).ids, dtype=np.int64)

    def whole_lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut, special ones included."""
        return [
            len(encoded.ids) + sum(len(more.ids) - sum(more.special_tokens_mask) for more in encoded.overflowing)
            for encoded in map(self._encoded, captions)
        ]

    def describe_truncation(self, captions: Sequence[str]) -> str:
        """How many of them are cut, and how long the longest is, as a part of a sentence; "" where none is."""
        lengths = self.whole_lengths(captions)
        cut = sum(length > self.length for length in lengths)
        if not cut:
            return ""
        return f"{cut:,} of {len(lengths):,} are longer, up to {max(lengths)} tokens"

    def cut_warning(self, texts: Sequence[str]) -> str:
        """A sentence when texts that a model is asked about are cut; "" where all of them are read whole."""
        cut = self.describe_truncation(texts)
        return f"This model reads {self.length} tokens of a text: {cut}, and lose their ends." if cut else ""

    def longest(self) -> np.ndarray:
        """int64 [length]: an ordinary token again and again between those that begin and end a sentence."""
        ends = self.encode("")
        text_L = np.full(self.length, self.ordinary_ids[0])
        text_L[0], text_L[-1] = ends[0], ends[-1]
        return text_L

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """Where in the caption each token of `encode` stands, as (first, last + 1) character; special ones (0, 0)."""
        return self._encoded(caption).offsets

    def _encoded(self, caption: str) -> Encoding:
        """Raises `UserError` for a text with surrogates, as Python reads bytes that are not UTF-8."""
        try:
            return self._encoder.encode(caption)
        except TypeError:
            raise UserError(f"The text {caption!r} is not Unicode: write it in UTF-8.") from None

    def special(self, text_L: np.ndarray) -> np.ndarray:
        """bool [L], True where a token is special."""
        return self._is_special[text_L]
