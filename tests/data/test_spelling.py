"""Tokens in readable form, of byte-level vocabularies and of others."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from mvlm.data.samples.spelling import spelled
from mvlm.data.samples.tokenizer import train_tokenizer

TEXT = "Red ünïcode 🦊, 金魚"


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte and no others."""
    return train_tokenizer([], 261)


def test_bytes_that_form_no_character_are_shown_one_by_one(bytewise: PreTrainedTokenizerFast) -> None:
    _, _, *tokens, _ = bytewise(TEXT).input_ids  # begin, space, ..., end
    assert len(tokens) == len(TEXT.encode()) and spelled(bytewise, tokens) == TEXT
    for byte, token in zip(TEXT.encode(), tokens, strict=True):
        shown = "␣" if byte == 32 else chr(byte) if byte < 128 else f"‹0x{byte:02X}›"
        assert spelled(bytewise, [token]) == shown
    fox = TEXT.encode().index("🦊".encode())
    assert spelled(bytewise, tokens[fox - 1 : fox + 3]) == "‹0xF0›‹0x9F›‹0xA6›"
    assert spelled(bytewise, tokens[fox + 3 : fox + 6]) == "‹0x8A›,"


def test_every_token_is_visible_and_no_two_look_alike(bytewise: PreTrainedTokenizerFast) -> None:
    shown = [spelled(bytewise, [token]) for token in range(len(bytewise))]
    assert all(map(str.isprintable, shown)) and "" not in shown and len({*shown}) == len(shown)
    assert shown[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def test_a_vocabulary_of_words_is_left_alone() -> None:
    model = Tokenizer(models.WordPiece({"[UNK]": 0, "a\N{REPLACEMENT CHARACTER}": 1, "##é": 2}, unk_token="[UNK]"))
    model.decoder = decoders.WordPiece()
    words = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")
    assert spelled(words, [1, 2]) == "a\N{REPLACEMENT CHARACTER}é"
