"""A run's `[kernels]` are applied to its model, and all ranks agree on them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from mvlm.config.load import load_config
from mvlm.config.schema import Config, Kernels
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.errors import UserError
from mvlm.kernels.dispatch import Implementation, Op
from mvlm.kernels.gelu_linear import GeluLinear, LinearBeforeGelu, gelu_linear
from mvlm.kernels.layer_norm import residual_norm
from mvlm.kernels.layers import use_kernels
from mvlm.model.fusion import FeedForward
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_model
from mvlm.runtime import dist
from mvlm.training.kernels import ALL_OPS, settle, settle_run
from tests.conftest import ROOT, TINY


def build(*overrides: str) -> tuple[MaskVLM, Config]:
    torch.manual_seed(0)
    config = load_config(ROOT / "mvlm/configs/tiny.toml", [*TINY, *overrides])
    return build_model(config.blueprint, train_tokenizer(["red circle top left"] * 5, 300)), config


def apply_kernels(model: MaskVLM, config: Config) -> None:
    settle_run(config.kernels)
    use_kernels(model)


def run_parts(model: MaskVLM) -> list[torch.Tensor]:
    """The outputs of the encoders and of a feed-forward, followed by all gradients."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(5, 20, (3, 6), generator=generator)
    valid = torch.arange(6) < torch.tensor([[6], [4], [5]])
    image_BSD, text_BLD = model.encode_image(image), model.encode_text(text, valid)
    feed_forward = next(module for module in model.modules() if isinstance(module, FeedForward))
    outputs = [image_BSD, text_BLD, feed_forward(image_BSD)]
    model.zero_grad()
    torch.autograd.backward(outputs, [torch.randn(x.shape, generator=generator).to(x) for x in outputs])
    return [*outputs, *(p.grad for p in model.parameters() if p.grad is not None)]


def test_every_operation_has_a_key() -> None:
    assert {field.name for field in dataclasses.fields(Kernels)} == ALL_OPS.keys()


def test_kernels_change_neither_the_numbers_of_a_model_nor_the_names_of_its_parameters() -> None:
    model, config = build()
    model.double()
    names, expected = [*model.state_dict()], run_parts(model)
    before, before_norms = gelu_linear.calls["kept"], residual_norm.calls["torch"]
    apply_kernels(model, config)
    for found, wanted in zip(run_parts(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert [*model.state_dict()] == names
    assert gelu_linear.calls["kept"] == before + 3  # the ViT's block, the text's layer, the feed-forward
    assert residual_norm.calls["torch"] == before_norms + 3  # the ViT's block once, the text's layer twice
    apply_kernels(model, config)
    assert {type(m) for m in model.modules() if isinstance(m, nn.GELU)} == set()


def test_a_feed_forward_with_dropout_after_its_gelu_is_not_fused() -> None:
    model, config = build("model.dropout=0.1")
    apply_kernels(model, config)
    kinds = {name: type(module) for name, module in model.vision.named_modules()}
    assert kinds["vit.blocks.0.mlp.fc2"] is not GeluLinear
    assert kinds["vit.blocks.0.mlp.fc1"] is not LinearBeforeGelu
    assert kinds["vit.blocks.0.mlp.act"] is not nn.Identity


def test_a_tanh_gelu_is_not_fused() -> None:
    model, config = build("model.text_args.hidden_act=gelu_new")
    apply_kernels(model, config)
    assert not any(isinstance(module, GeluLinear) for module in model.text.modules())


def test_an_unknown_implementation_is_refused() -> None:
    model, config = build("kernels.attention=flash3")
    with pytest.raises(
        UserError,
        match=r"kernels\.attention = 'flash3' is not known: choose auto, cudnn, fa3, efficient, fp32, products, sdpa\.",
    ):
        apply_kernels(model, config)


def make_op() -> Op:
    return Op("double", Implementation("fused", lambda x: 2 * x), Implementation("torch", lambda x: x + x))


def test_no_rank_takes_what_one_rank_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Seen by rank 0 of three, of which the last lacks a library."""
    monkeypatch.setattr(dist, "world", lambda: 3)
    monkeypatch.setattr(dist, "gather_objects", lambda own: [own, own, {"double": {"fused": "not installed"}}])
    op = make_op()
    settle({"double": op}, {"double": "auto"})
    assert op.first(1).name == "torch"
    assert capsys.readouterr().err == "mvlm: no rank takes fused for double (rank 2: not installed).\n"
    message = r"kernels\.double = 'fused' cannot run on every rank \(rank 2: not installed\): choose auto\."
    with pytest.raises(UserError, match=message):
        settle({"double": make_op()}, {"double": "fused"})
