"""Checks whether a transformers encoder can read a run's texts, on one random block of it with a few tokens."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PretrainedConfig

from mvlm.errors import UserError, first_line

INSTEAD = "use an encoder that reads in both directions, such as 'bert', 'roberta' or 'FacebookAI/roberta-base'"
SHORTEST = 3
"""Tokens of the shortest text: two special ones and a word."""
LONGEST = 4096
"""Tokens that are tried if an encoder does not say how many it takes."""


def check_text_encoder(settings: PretrainedConfig, name: str, length: int) -> None:
    """Raise `UserError` unless an encoder gives each token a feature of the whole text, and of nothing else, for texts
    of this length.

    Args:
        settings: of the encoder; its padding token matters, since positions may begin after it.
        name: what `model.text` says.
        length: `data.text_length`.
    """
    kind = settings.model_type
    if getattr(settings, "is_encoder_decoder", False):
        raise UserError(
            f"model.text {name!r} is an encoder with a decoder ({kind}), which is not supported: {INSTEAD}."
        )
    try:
        block = _one_block(settings)
    except Exception:  # building the encoder in full will report it
        return
    try:
        one, other = _features(block, SHORTEST)
        padded, _ = _features(block, SHORTEST, padding=SHORTEST)
    except Exception as error:  # whatever a model raises that lacks images, sounds or a decoder's tokens
        raise UserError(
            f"model.text {name!r} ({kind}) gives no features of token ids alone ({first_line(error)}): {INSTEAD}."
        ) from None
    if torch.allclose(one[0], other[0], rtol=1e-6, atol=1e-6):
        raise UserError(
            f"model.text {name!r} ({kind}) is causal: its first token knows nothing of the others, so that all texts "
            f"would look the same to ITC and ITM; {INSTEAD}."
        )
    if not torch.allclose(one, padded, atol=1e-4):
        raise UserError(
            f"model.text {name!r} ({kind}) gives other features to a text that is padded, so that losses and "
            f"evaluations would depend on the texts that are read with it; {INSTEAD}."
        )
    if (longest := _longest(block, settings, length)) < length:
        raise UserError(
            f"data.text_length is {length}, and model.text {name!r} has positions for {longest} tokens: set it to "
            f"{longest} or less, or, with random weights, raise model.text_args.max_position_embeddings."
        )


def _one_block(settings: PretrainedConfig) -> Any:
    """The encoder with one block, few words and random weights, on the CPU whatever the default device."""
    small = copy.deepcopy(settings)
    small.vocab_size = max(getattr(small, "pad_token_id", None) or 0, 0) + 2 + SHORTEST
    with contextlib.suppress(NotImplementedError):  # some count their blocks in another way, and are built whole
        small.num_hidden_layers = 1
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        block = AutoModel.from_config(small, dtype=torch.float32).eval()
    if getattr(block, "pooler", None) is not None:
        block.pooler = None  # as in the encoder that is trained
    return block


@torch.no_grad()
def _features(block: Any, length: int, padding: int = 0) -> Tensor:
    """The features of two texts of this length, then padded, that differ only in their second token -> 2LD."""
    last, whole = block.config.vocab_size - 1, length + padding
    text_2L = torch.full((2, whole), last, device="cpu")
    text_2L[1, 1] = last - 1
    text_2L[:, length:] = max(getattr(block.config, "pad_token_id", None) or 0, 0)
    mask_2L = (torch.arange(whole, device="cpu") < length).long().repeat(2, 1)
    features_2LD: Tensor = block(input_ids=text_2L, attention_mask=mask_2L).last_hidden_state
    if features_2LD.shape != (2, whole, block.config.hidden_size):
        raise ValueError(f"its features have the shape {tuple(features_2LD.shape)}")
    return features_2LD[:, :length]


def _longest(block: Any, settings: PretrainedConfig, wanted: int) -> int:
    """The longest text up to `wanted` that has a position for each token; an encoder without a limit reads `wanted`."""
    said = getattr(settings, "max_position_embeddings", None)
    reads, fails = SHORTEST, min(wanted, said + 1 if isinstance(said, int) and said > 0 else LONGEST)
    if _is_read(block, fails):
        return wanted
    while fails - reads > 1:
        middle = (reads + fails) // 2
        reads, fails = (middle, fails) if _is_read(block, middle) else (reads, middle)
    return reads


def _is_read(block: Any, length: int) -> bool:
    try:
        _features(block, length)
    except Exception:  # an index beyond the table, shapes that do not match, or the model's own error
        return False
    return True
