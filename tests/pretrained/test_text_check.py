"""Which text encoders of transformers are accepted, and up to which length; small ones of the real classes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from mvlm.config.schema import Model
from mvlm.errors import UserError
from mvlm.pretrained.encoders import Vocabulary, build_text_encoder
from mvlm.pretrained.text_check import check_text_encoder

SIZES = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "num_hidden_layers": 2}
OTHERS = {
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 48},
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 3},
    "t5": {"d_model": 24, "num_layers": 1},
    "vit": {"hidden_size": 24},
    "squeezebert": SIZES | {"hidden_size": 48, "embedding_size": 48, "num_attention_heads": 12},
    "convbert": SIZES | {"num_attention_heads": 4, "embedding_size": 24},
}


def check(kind: str, length: int, **more: object) -> None:
    settings = AutoConfig.for_model(kind, **OTHERS.get(kind, SIZES), **more)
    check_text_encoder(settings, kind, length)


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 64), ("roberta", 62), ("mpnet", 62), ("distilbert", 64), ("electra", 64)]
)
def test_a_text_may_take_all_positions_but_no_more(kind: str, positions: int) -> None:
    check(kind, positions, max_position_embeddings=64)
    for length in (positions + 1, 64 + 1, 10**9):
        with pytest.raises(
            UserError, match=f"text_length is {length}, .* has positions for {positions} tokens: set it"
        ):
            check(kind, length, max_position_embeddings=64)


def test_positions_begin_after_the_padding_token() -> None:
    check("roberta", 58, max_position_embeddings=64, pad_token_id=5)
    with pytest.raises(UserError, match="has positions for 58 tokens"):
        check("roberta", 59, max_position_embeddings=64, pad_token_id=5)


def test_an_encoder_without_a_position_table_has_no_limit() -> None:
    check("xlnet", 1000, d_model=24, n_head=3, n_layer=2, d_inner=48)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("gpt2", "(gpt2) is causal"),
        ("clip_text_model", "(clip_text_model) is causal"),
        ("opt", "(opt) is causal"),
        ("t5", "an encoder with a decoder (t5)"),
        ("vit", "(vit) gives no features of token ids alone"),
        ("squeezebert", "(squeezebert) gives no features of token ids alone"),
        ("convbert", "(convbert) gives other features to a text that is padded"),
    ],
)
def test_a_model_that_cannot_encode_a_text_is_refused_by_name(kind: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        check(kind, 10)
    assert f"model.text {kind!r}" in str(error.value) and what in str(error.value)
    assert "use an encoder that reads in both directions, such as 'bert'" in str(error.value)


def test_an_encoder_without_an_embedding_table_is_refused() -> None:
    config = Model(text="ibert", text_args=SIZES, text_weights="random")
    with pytest.raises(UserError, match="'ibert' embeds its tokens by a QuantEmbedding"):
        build_text_encoder(config, Vocabulary(100, 1))


def test_a_bert_configured_as_a_decoder_is_causal() -> None:
    check("bert", 10)
    with pytest.raises(UserError, match="is causal"):
        check("bert", 10, is_decoder=True)


def test_the_check_leaves_the_random_state_unchanged() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    check("bert", 10)
    assert torch.equal(torch.rand(1), wanted)
