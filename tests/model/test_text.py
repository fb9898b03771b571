"""Texts packed without padding have the features and gradients that transformers' padded encoder gives."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.data.loading.collate import pack
from mvlm.kernels.packed_attention import PACKED_ATTENTION
from mvlm.model.text import PACKABLE
from mvlm.pretrained.encoders import build_text_encoder
from tests.conftest import ROOT, TINY

SIZES = {
    "distilbert": "{dim=24, n_layers=2, n_heads=3, hidden_dim=48}",
    "others": "{hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, embedding_size=24}",
}


def configuration(kind: str, *overrides: str) -> Config:
    sizes = SIZES.get(kind, SIZES["others"])
    words = [*TINY, f"model.text={kind}", f"model.text_args={sizes}", *overrides]
    return load_config(ROOT / "mvlm/configs/tiny.toml", words)


def texts(lengths: tuple[int, ...], pad: int, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    valid = torch.arange(length) < torch.tensor(lengths)[:, None]
    text = torch.randint(5, 290, (2, len(lengths), length), generator=generator)
    return text.masked_fill(~valid, pad), valid


@pytest.mark.parametrize("kind", PACKABLE)
@pytest.mark.parametrize("lengths", [(3, 12, 7, 5, 1), (12, 12), (1,)], ids=str)
def test_packed_texts_give_the_features_and_gradients_of_padded_ones(
    tokenizer: PreTrainedTokenizerBase, kind: str, lengths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    encoder = build_text_encoder(configuration(kind).model, tokenizer).double()
    encoder.train()
    text, valid = texts(lengths, tokenizer.pad_token_id)
    weight = torch.randn(2, *valid.shape, encoder.width, dtype=torch.float64) * valid[..., None]
    parameters = list(encoder.parameters())
    found = encoder(text, valid, pack(valid))
    padded = torch.stack([encoder.model(one, attention_mask=valid.long()).last_hidden_state for one in text])
    assert encoder.settings._attn_implementation != "mvlm_packed"
    torch.testing.assert_close(found, padded * valid[..., None], rtol=1e-12, atol=1e-12)
    gradients = (
        torch.autograd.grad((tokens * weight).sum(), parameters, allow_unused=True) for tokens in (found, padded)
    )
    for (name, _), one, other in zip(encoder.named_parameters(), *gradients, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", PACKABLE)
def test_a_padding_token_within_a_caption_is_encoded_the_same_packed_and_padded(
    tokenizer: PreTrainedTokenizerBase, kind: str
) -> None:
    """Training packs texts, evaluation does not."""
    encoder = build_text_encoder(configuration(kind).model, tokenizer).double().eval()
    text, valid = texts((9, 12), tokenizer.pad_token_id)
    text[:, :, 4] = tokenizer.pad_token_id
    torch.testing.assert_close(encoder(text, valid)[:, valid], encoder(text, valid, pack(valid))[:, valid])


@pytest.mark.parametrize(("kind", "layers"), [("roberta", 2), ("roberta", 0), ("mpnet", 1)], ids=str)
def test_the_mean_of_all_tokens_can_represent_a_text(
    tokenizer: PreTrainedTokenizerBase, kind: str, layers: int
) -> None:
    sizes = f"{{hidden_size=24, num_hidden_layers={layers}, num_attention_heads=3, intermediate_size=48}}"
    torch.manual_seed(0)
    words = (f"model.text_args={sizes}", "model.text_pool=mean")
    encoder = build_text_encoder(configuration(kind, *words).model, tokenizer).double().eval()
    text, valid = texts((3, 12, 1, 7), tokenizer.pad_token_id)
    found = encoder(text, valid, pack(valid))
    for one, tokens in zip(text, found, strict=True):
        plain = encoder.model(one, attention_mask=valid.long()).last_hidden_state
        means = [of_text[:length].mean(0) for of_text, length in zip(plain, (3, 12, 1, 7), strict=True)]
        torch.testing.assert_close(tokens[:, 0], torch.stack(means), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tokens[valid][1:3], plain[valid][1:3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder(text[0], valid)[valid], found[0][valid], rtol=1e-12, atol=1e-12)


def test_an_encoder_that_cannot_be_packed_is_padded(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = "{hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48}"
    config = configuration("mpnet", f"model.text_args={sizes}")
    encoder = build_text_encoder(config.model, tokenizer).eval()
    text, valid = texts((3, 12, 7), tokenizer.pad_token_id)
    before = PACKED_ATTENTION.calls.total()
    found = encoder(text, valid, pack(valid))
    assert torch.equal(found[1], encoder(text[1], valid)) and PACKED_ATTENTION.calls.total() == before


def test_dropout_set_under_the_encoders_own_name_takes_precedence(tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = SIZES["others"].replace("}", ", hidden_dropout_prob=0.3}")
    config = configuration("roberta", f"model.text_args={sizes}", "model.dropout=0.1")
    settings = build_text_encoder(config.model, tokenizer).settings
    assert (settings.hidden_dropout_prob, settings.attention_probs_dropout_prob) == (0.3, 0.1)


def test_packed_attention_drops_out_only_in_training(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build_text_encoder(configuration("roberta", "model.dropout=0.5").model, tokenizer)
    text, valid = texts((3, 12, 7), tokenizer.pad_token_id)
    plain, dropout = PACKED_ATTENTION.implementations[-1], []

    def recorded(*arguments: object) -> torch.Tensor:
        dropout.append(arguments[-1])
        return plain.run(*arguments)

    monkeypatch.setattr(PACKED_ATTENTION, "implementations", (replace(plain, run=recorded),))
    encoder.train()(text, valid, pack(valid))
    encoder.eval()(text, valid, pack(valid))
    assert dropout == [0.5, 0.5, 0.0, 0.0]
