"""Trains a byte-level BPE on a corpus's texts with `tokenizers` alone: transformers takes seconds to import."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from mvlm.errors import UserError

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In the order of the first four ids of RoBERTa, whose mask token is the last of its vocabulary."""

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""Every byte and special token has an id, so that no text is unknown."""


def train_bpe(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens that writes `<s> caption </s>`, as RoBERTa's does.

    Text is normalised to NFC and keeps its case. The same captions give the same tokenizer.

    Raises:
        UserError: `vocab_size` has no room for the bytes and special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"A vocabulary of {vocab_size} is too small: give {SMALLEST_VOCABULARY} tokens or more.")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    # Like RoBERTa's, the mask token absorbs the space before it, which a byte-level word includes itself.
    special = [AddedToken(t, special=True, normalized=False, lstrip=t == "<mask>") for t in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    first, last = ((token, SPECIAL_TOKENS.index(token)) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(last, first, trim_offsets=True, add_prefix_space=True)
    return tokenizer
