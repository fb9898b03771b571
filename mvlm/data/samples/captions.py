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
    """How far sizes that depend on captions are rounded up, so that few different ones occur."""

    text: int  # tokens: texts are padded to a multiple of it
    masked: int  # tokens: the masked ones of a sentence are padded to a multiple of it
    packed: int  # bits: the number of tokens without padding is rounded up by less than one part in 2**packed
    predicted: int  # bits: likewise the number of masked tokens of all sentences


FINE = Rounding(text=8, masked=4, packed=5, predicted=32)
"""Tensor cores want multiples of 8; the number of masked tokens of all sentences is not rounded."""
COARSE = Rounding(text=16, masked=8, packed=3, predicted=3)
"""For compiled steps, which compile and capture each size separately."""


def round_in_bits(count: int, bits: int) -> int:
    """Round up by less than one part in 2**bits."""
    step = 1 << max(count.bit_length() - bits - 1, 0)
    return -(-count // step) * step


class CaptionTokenizer:
    """Captions to token ids, safe to call from several threads.

    It holds its own copy of the tokenizer with the truncation set once: the transformers wrapper sets it
    again at each call, which fails when another thread is encoding.

    Attributes:
        length: most tokens of a caption, special ones included.
        pad_id, mask_id: ids of these special tokens.
        rounding: of the sizes of batches of its captions.
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
        """How many of them are cut, and how long the longest is, as part of a sentence; "" if none is."""
        lengths = self.whole_lengths(captions)
        cut = sum(length > self.length for length in lengths)
        if not cut:
            return ""
        return f"{cut:,} of {len(lengths):,} are longer, up to {max(lengths)} tokens"

    def cut_warning(self, texts: Sequence[str]) -> str:
        """A sentence if texts that a model is asked about are cut; "" if all of them are read whole."""
        cut = self.describe_truncation(texts)
        return f"This model reads {self.length} tokens of a text: {cut}, and lose their ends." if cut else ""

    def longest(self) -> np.ndarray:
        """int64 [length]: one ordinary token repeated between those that begin and end a sentence."""
        ends = self.encode("")
        text_L = np.full(self.length, self.ordinary_ids[0])
        text_L[0], text_L[-1] = ends[0], ends[-1]
        return text_L

    def spans(self, caption: str) -> list[tuple[int, int]]:
        """The characters of the caption that each token of `encode` covers, (first, last + 1); (0, 0) if special."""
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
