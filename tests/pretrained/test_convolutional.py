"""A convolutional network as the image encoder computes what timm's does, with weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mvlm.__main__ import main
from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.errors import UserError
from mvlm.model.vision import VisionEncoder
from mvlm.pretrained.encoders import build_image_encoder
from mvlm.pretrained.load import build_with_weights, fill_image_encoder
from mvlm.pretrained.report import LoadReport
from mvlm.pretrained.runs import load_run
from mvlm.training.optim import parameter_groups
from tests.conftest import ROOT, TINY

TOML = ROOT / "mvlm/configs/tiny.toml"
VISION = ("model.vision=test_efficientnet", "model.vision_args={embed_dim=32}", "model.image_size=64")


def configuration(name: str, weights: Path | str, *overrides: str) -> Config:
    words = [f"model.vision={name}", f"model.vision_weights={weights}", *overrides]
    return load_config(TOML, [*TINY, *VISION, *words])


def trained(name: str) -> Any:
    """A network whose batch norms have statistics as after training."""
    torch.manual_seed(5)
    network = timm.create_model(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.5, 0.5)
    return network.eval()


def filled(config: Config) -> tuple[VisionEncoder, LoadReport]:
    encoder = build_image_encoder(config.model)
    return encoder, fill_image_encoder(encoder, config.model)


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def names_of_efficientnet_pytorch(repeats: tuple[int, ...]) -> list[str]:
    """Names in the order of efficientnet-lite-pytorch's checkpoints; only the first block does not expand channels."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["_conv_stem.weight", *norm("_bn0")]
    for block in range(sum(repeats)):
        inner = ["_expand_conv.weight", *norm("_bn0")] if block else []
        inner += ["_depthwise_conv.weight", *norm("_bn1"), "_project_conv.weight", *norm("_bn2")]
        names += [f"_blocks.{block}.{name}" for name in inner]
    return [*names, "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"]


@pytest.mark.parametrize("name", ["test_efficientnet", "test_efficientnet_gn", "test_resnet", "mobilenetv3_small_050"])
def test_features_are_those_of_timms_network(tmp_path: Path, name: str) -> None:
    network = trained(name)
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    encoder, report = filled(configuration(name, tmp_path / "network.safetensors"))
    pixels = encoder.normalize(images())
    with torch.no_grad():
        expected, found = network.forward_features(pixels), encoder.vit.trunk.forward_features(pixels)
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
        tokens_BSD = encoder(images())
        alone_1SD = encoder(images()[:1])
    assert encoder.grid == (2, 2) and tokens_BSD.shape == (3, 5, 32)
    assert torch.allclose(tokens_BSD[:1], alone_1SD, atol=1e-5)  # independent of the rest of the batch
    map_BND = expected.flatten(2).transpose(1, 2)
    mean_BD = encoder.vit.embed(map_BND.mean(1, keepdim=True))
    assert torch.allclose(tokens_BSD, torch.cat([mean_BD, encoder.vit.embed(map_BND)], 1), atol=1e-3)
    assert {part.split(".")[0] for part in report.matched} == {"trunk"}
    assert report.fresh == ["embed.0.weight", "embed.0.bias", "embed.1.weight", "embed.1.bias"]


def test_weights_are_read_under_the_names_of_efficientnet_pytorch(tmp_path: Path) -> None:
    network = trained("tf_efficientnet_lite0")
    tensors = network.state_dict()
    names = names_of_efficientnet_pytorch((1, 2, 2, 3, 3, 4, 1))
    torch.save(dict(zip(names, tensors.values(), strict=True)), tmp_path / "lite0.pth")
    encoder, report = filled(configuration("tf_efficientnet_lite0", tmp_path / "lite0.pth"))
    pixels = encoder.normalize(images(1))
    with torch.no_grad():
        expected, found = network.forward_features(pixels), encoder.vit.trunk.forward_features(pixels)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert "EfficientNet-PyTorch" in report.source and report.left == [
        "trunk.classifier.bias",
        "trunk.classifier.weight",
    ]


def test_weights_of_efficientnet_pytorch_need_tensorflows_padding(tmp_path: Path) -> None:
    """timm's own network takes all tensors, and computes other features."""
    names = names_of_efficientnet_pytorch((1, 2, 2, 3, 3, 4, 1))
    tensors = trained("tf_efficientnet_lite0").state_dict().values()
    torch.save(dict(zip(names, tensors, strict=True)), tmp_path / "lite0.pth")
    with pytest.raises(UserError, match=r"set model\.vision = 'tf_efficientnet_lite0'\.$"):
        filled(configuration("efficientnet_lite0", tmp_path / "lite0.pth"))


def test_a_masked_patch_is_replaced_by_a_learned_one(tmp_path: Path) -> None:
    encoder, _ = filled(_saved(tmp_path))
    mask_BN = torch.tensor([[True, False, False, True]])
    whole, other = images(1), images(1)
    other[:, :, :32, :32], other[:, :, 32:, 32:] = 7, 200
    assert torch.equal(encoder(whole, mask_BN), encoder(other, mask_BN))
    assert not torch.equal(encoder(whole), encoder(other))
    encoder(whole, mask_BN).square().sum().backward()
    assert encoder.vit.patch_embed.mask_token.grad.abs().min() > 0


def test_new_layers_are_reported_and_trained_as_new(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = _saved(tmp_path)
    model, initial, report = build_with_weights(config.blueprint, tokenizer)
    initial.materialize()
    assert report is not None and "vision.vit.embed.0.weight" in report.fresh
    assert not any(name.startswith("vision.vit.trunk.") for name in report.fresh)
    rates = {id(p): group["lr"] for group in parameter_groups(model, config.optim) for p in group["params"]}
    assert rates[id(model.vision.vit.embed[0].weight)] == config.optim.lr
    assert rates[id(model.vision.vit.trunk.conv_stem.weight)] == config.optim.encoder_lr


@pytest.mark.campaign
def test_it_is_trained_with_all_objectives_and_loaded_again(tmp_path: Path, scenes: Path) -> None:
    config, run = _saved(tmp_path), tmp_path / "run"
    words = [*TINY, *VISION, f"model.vision_weights={config.model.vision_weights}", *RATES]
    words += [f"run.dir={run}", f"data.train={scenes}/train", "train.steps=2", "train.freeze=['vision.vit.trunk']"]
    assert main(["train", str(TOML), "--deepspeed_config", str(ROOT / "ds_configs/cpu.json"), *words]) == 0
    model = load_run(run, torch.device("cpu")).model
    started = filled(config)[0]
    for name, parameter in model.vision.named_parameters():
        if name.startswith("vit.trunk."):
            assert torch.equal(parameter, started.get_parameter(name)), name
    encoder, report = filled(configuration("test_efficientnet", run))
    assert torch.equal(encoder(images()), model.vision(images()))
    assert report.fresh == [] and "patch_embed.mask_token" in report.matched


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    config = _saved(tmp_path, "objectives.image_masking=drop")
    with pytest.raises(UserError, match="cannot leave out patches"):
        build_image_encoder(config.model, drops=True)
    with pytest.raises(UserError, match="image_size 80 is not a multiple of the 32 x 32"):
        build_image_encoder(configuration("test_resnet", "random", "model.image_size=80").model)
    save_file({"blocks.0.weight": torch.zeros(2)}, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="holds no convolutional network"):
        filled(configuration("test_resnet", tmp_path / "vit.safetensors"))
    with pytest.raises(UserError, match="does not fit the image encoder"):
        filled(configuration("test_resnet", config.model.vision_weights))


RATES = ("optim.lr=2e-3", "optim.encoder_lr=1e-4")


def _saved(folder: Path, *overrides: str) -> Config:
    save_file(trained("test_efficientnet").state_dict(), folder / "network.safetensors")
    return configuration("test_efficientnet", folder / "network.safetensors", *RATES, *overrides)
