"""The learning rate and the weight decay of each parameter."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mvlm.config.load import load_config
from mvlm.data.samples.tokenizer import train_tokenizer
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.encoders import build_model
from mvlm.training.optim import count_parameters, parameter_groups
from mvlm.training.zero.adamw import build_adamw
from tests.conftest import ROOT, TINY

RATES = ["optim.lr=3e-4", "optim.encoder_lr=1e-5", "optim.weight_decay=0.05"]


def build(*overrides: str) -> tuple[MaskVLM, list[dict[str, Any]]]:
    config = load_config(ROOT / "mvlm/configs/tiny.toml", [*TINY, *RATES, *overrides])
    model = build_model(config.blueprint, train_tokenizer(["red circle top left"] * 5, 300))
    return model, parameter_groups(model, config.optim)


def by_parameter(model: MaskVLM, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The group of each parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("tied", ["false", "true"])
def test_every_parameter_is_in_exactly_one_group(tied: str) -> None:
    model, groups = build(f"model.tie_classifier={tied}")
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in model.parameters()}
    assert sum(p.numel() for group in groups for p in group["params"]) == count_parameters(model)


def test_norms_and_biases_are_not_decayed_and_matrices_are() -> None:
    model, groups = build()
    group_of = by_parameter(model, groups)
    kinds: dict[type, set[float]] = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            decay = group_of[f"{prefix}.{name}"]["weight_decay"]
            if isinstance(module, torch.nn.LayerNorm) or name == "bias":
                assert decay == 0.0, f"{prefix}.{name}"
            elif isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)):
                assert decay == 0.05, f"{prefix}.{name}"
            kinds.setdefault(type(module), set()).add(decay)
    assert kinds[torch.nn.LayerNorm] == {0.0}
    assert kinds[torch.nn.Linear] == {0.0, 0.05}  # both biases and weights were checked
    assert group_of["temperature.value"]["weight_decay"] == 0.0


def test_encoders_have_a_low_rate_and_new_parameters_a_high_one() -> None:
    model, groups = build()
    group_of = by_parameter(model, groups)
    for name, group in group_of.items():
        pretrained = name.startswith(("vision.", "text.")) and "mask_token" not in name
        assert group["lr"] == group["peak_lr"] == (1e-5 if pretrained else 3e-4), name
    parts = {name.split(".")[0] for name in group_of}
    assert {"vision", "text", "cross_image", "cross_text", "image_decoder", "mlm_head", "temperature"} <= parts
    assert any("mask_token" in name for name in group_of)


def test_a_tied_weight_is_trained_as_a_part_of_the_encoder() -> None:
    model, groups = build("model.tie_classifier=true")
    weight = model.mlm_head.classifier.weight
    assert weight is model.text.embedding.weight
    (group,) = [g for g in groups if any(parameter is weight for parameter in g["params"])]
    assert (group["lr"], group["weight_decay"]) == (1e-5, 0.05)


def test_the_optimizer_is_adamw_as_configured() -> None:
    """One update agrees with the formula of Loshchilov and Hutter (2019), bias correction included."""
    own = ["optim.betas=[0.8,0.9]", "optim.eps=1e-3"]
    model, groups = build(*own)
    config = load_config(ROOT / "mvlm/configs/tiny.toml", [*TINY, *RATES, *own])
    optimizer = build_adamw(groups, config.optim, torch.device("cpu"), stage=0)
    group_of = by_parameter(model, groups)
    generator = torch.Generator().manual_seed(0)
    before = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    for name, parameter in model.named_parameters():
        lr, decay, gradient = group_of[name]["lr"], group_of[name]["weight_decay"], parameter.grad.double()
        first, second = 0.2 * gradient / (1 - 0.8), 0.1 * gradient**2 / (1 - 0.9)
        expected = before[name] * (1 - lr * decay) - lr * first / (second.sqrt() + 1e-3)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-7)


DEEP = [
    "model.vision_args={patch_size=16, embed_dim=32, depth=3, num_heads=2}",
    "optim.encoder_lr=1e-3",
    "optim.layer_decay=0.5",
]


def mae_layer(name: str, depth: int) -> int:
    """As get_layer_id_for_vit in util/lr_decay.py of facebookresearch/mae, with num_layers = depth + 1."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


def test_rates_fall_from_layer_to_layer_of_both_encoders() -> None:
    """Layers of the image encoder are numbered by MAE's own rule; the text encoder has embeddings and one layer."""
    model, groups = build(*DEEP)
    group_of = by_parameter(model, groups)
    for name, group in group_of.items():
        peak = group["peak_lr"]
        if name.endswith("mask_token") or not name.startswith(("vision.", "text.")):
            assert peak == 3e-4, name
        elif name.startswith("vision."):
            expected = 1e-3 * 0.5 ** (4 - mae_layer(name.removeprefix("vision.vit."), 3))
            assert peak == pytest.approx(expected), name
        else:
            assert peak == pytest.approx(1e-3 * (0.25 if ".embeddings." in name else 0.5)), name
        assert group["weight_decay"] == (0.05 if dict(model.named_parameters())[name].ndim > 1 else 0.0)
    rates = {name: group_of[name]["peak_lr"] for name in group_of if name.startswith("vision.")}
    assert rates["vision.vit.cls_token"] == 1e-3 / 16 and rates["vision.vit.norm.weight"] == 1e-3
    assert rates["vision.vit.patch_embed.patch_embed.proj.weight"] == 1e-3 / 16
    assert [rates[f"vision.vit.blocks.{n}.norm1.bias"] for n in range(3)] == [1e-3 / 8, 1e-3 / 4, 1e-3 / 2]
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))


@pytest.mark.parametrize("kind", ["distilbert", "electra", "albert", "rembert", "mpnet", "eurobert"])
def test_the_layers_of_other_text_encoders_are_found(kind: str) -> None:
    sizes = "hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48"
    if kind in ("electra", "albert"):
        sizes += ", embedding_size=16"
    if kind == "eurobert":
        sizes += ", num_key_value_heads=3, bos_token_id=2, eos_token_id=3, mask_token_id=4"
    if kind == "distilbert":
        sizes = "dim=24, n_layers=3, n_heads=3, hidden_dim=48"
    model, groups = build(*DEEP, f"model.text={kind}", f"model.text_args={{{sizes}}}", "model.cross_heads=2")
    rates = {name: group["peak_lr"] for name, group in by_parameter(model, groups).items() if name.startswith("text.")}
    depth = 1 if kind == "albert" else 3  # ALBERT's layers share their weights
    if kind != "albert":
        inside = {match[1]: rate for name, rate in rates.items() if (match := re.search(r"\.layers?\.(\d)", name))}
        assert inside == {str(n): pytest.approx(1e-3 * 0.5 ** (3 - n)) for n in range(3)}
    embeddings = {rate for name, rate in rates.items() if ".embed" in name}  # and what widens them
    assert sorted(embeddings) == [pytest.approx(1e-3 * 0.5 ** (depth + 1))]


def test_without_layer_decay_there_are_four_groups() -> None:
    assert [group["name"] for group in build()[1]] == ["encoder_decay", "encoder_no_decay", "new_decay", "new_no_decay"]
