"""Tokens as people read them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from unicodedata import category

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _byte_of_letter() -> dict[str, int]:
    """The byte for each letter of a byte-level vocabulary: itself if below 256, and the others in order from there."""
    letters = sorted(ByteLevel.alphabet())
    itself = [ord(letter) for letter in letters if ord(letter) < 256]
    return dict(zip(letters, [*itself, *sorted({*range(256)} - {*itself})], strict=True))


BYTES = _byte_of_letter()


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"‹0x{byte:02X}›" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("mvlm.show_bytes", _show_bytes)


def spelled(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text that tokens spell together, without spaces around it.

    Control characters, and bytes that do not make a whole character, appear as ‹0xE2›; a space alone as ␣.
    """
    text = str(tokenizer.decode(list(tokens)))
    letters = "".join(tokenizer.convert_ids_to_tokens(list(tokens)))
    if REPLACEMENT in text and BYTES.keys() >= {*letters}:
        text = bytes(BYTES[letter] for letter in letters).decode("utf-8", "mvlm.show_bytes")
    shown = "".join(f"‹0x{ord(sign):02X}›" if category(sign) == "Cc" else sign for sign in text.strip(" "))
    return shown or "␣"
