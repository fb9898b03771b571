"""The patch dictionary: its features against patches cut out one by one, and how it is made and used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mvlm.__main__ import main
from mvlm.config.load import load_config
from mvlm.errors import UserError
from mvlm.model.dictionary import EVEN, THRESHOLD, PatchDictionary
from mvlm.pretrained import dictionary as fitting
from mvlm.pretrained.dictionary import fit_dictionary
from mvlm.pretrained.encoders import build_image_encoder
from mvlm.pretrained.load import fill_image_encoder
from tests.conftest import ROOT, TINY

TOML = ROOT / "mvlm/configs/tiny.toml"
VISION = ("model.vision=patch_dictionary", "model.vision_args={embed_dim=32}", "model.image_size=64")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAMPLES", 4000)


def stripes(count: int = 24) -> Tensor:
    """Vertical and horizontal stripes of several widths and colours, uint8 NCHW."""
    generator = np.random.default_rng(0)
    pictures = np.zeros((count, 3, 64, 64), np.uint8)
    for number, picture in enumerate(pictures):
        along = (np.arange(64) // (2 + number % 5)) % 2
        pattern = np.broadcast_to(along if number % 2 else along[:, None], (64, 64))
        picture[:] = np.where(pattern, *generator.integers(0, 256, (2, 3, 1, 1)))
    return torch.from_numpy(pictures)


def normalized(image_NCHW: Tensor) -> Tensor:
    return (image_NCHW.double() / 255 - 0.5) / 0.5


def test_features_are_those_of_patches_cut_out_one_by_one() -> None:
    dictionary = fit_dictionary(stripes(), patches=8).double().eval()
    noise = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(2))
    image = normalized(noise // 4 + stripes()[3] // 2)
    edged = np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    filters, bias = (value.detach().numpy() for value in (dictionary.filters, dictionary.bias))
    seen = np.zeros((19, 4, 4))
    for y in range(16):
        for x in range(16):
            patch = edged[:, 4 * y : 4 * y + 6, 4 * x : 4 * x + 6]
            plain = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + EVEN**2)
            alike = (filters * plain).sum((1, 2, 3)) + bias
            both = np.concatenate([alike, -alike])
            seen[:16, y // 4, x // 4] += np.maximum(both - THRESHOLD, 0) / 16
    seen[:16] = np.sqrt(seen[:16] + 1e-6)
    seen[16:] = image.numpy().reshape(3, 4, 16, 4, 16).mean((2, 4))
    scaled = (seen - dictionary.mean.detach().numpy()[:, None, None]) * dictionary.scale.detach().numpy()[:, None, None]
    found = dictionary.forward_features(image[None])[0].detach()
    quadrants = np.stack([scaled[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (0, 2)])
    np.testing.assert_allclose(found.mean((1, 2)).numpy(), quadrants.ravel(), rtol=1e-9, atol=1e-9)
    assert found.shape == (4 * 19, 4, 4)
    np.testing.assert_allclose(found[:19, :2, :2].numpy(), 4 * scaled[:, :2, :2], rtol=1e-9, atol=1e-9)
    assert not found[:19, 2:].any() and not found[:19, :, 2:].any()


def test_it_distinguishes_pictures_by_their_patterns() -> None:
    """The nearest picture always has stripes in the same direction; with random filters, a quarter do not."""
    image = stripes(40)
    across = torch.arange(40) % 2

    def separated(dictionary: PatchDictionary) -> float:
        with torch.no_grad():
            described = dictionary.eval().forward_features(normalized(image).float())
        patches = described.mean((2, 3)).unflatten(0, (40,)).unflatten(1, (4, -1))[:, :, :-3].flatten(1)
        alike = torch.nn.functional.normalize(patches, dim=1) @ torch.nn.functional.normalize(patches, dim=1).T
        alike.fill_diagonal_(-9)
        return float((across[alike.argmax(1)] == across).float().mean())

    assert separated(fit_dictionary(image, patches=16)) == 1
    described = fit_dictionary(image, patches=16)
    with torch.no_grad():
        features = described.described(normalized(image).float()).transpose(0, 1).flatten(1)
    scaled = (features - described.mean[:, None]) * described.scale[:, None]
    assert scaled.mean(1).abs().max() < 1e-3 and 0.8 < scaled.std(1).median() <= 1


def test_the_mean_patch_is_subtracted_before_comparison() -> None:
    """In reddish pictures, patches are not similar merely because they are red."""
    image = stripes(40)
    image[:, 0], image[:, 2] = image[:, 0] // 2 + 128, image[:, 2] // 4
    dictionary = fit_dictionary(image, patches=16)
    with torch.no_grad():
        alike = dictionary.resemblance(normalized(image).float()).transpose(0, 1).flatten(1)
    assert (alike.mean(1).abs() / alike.std(1)).max() < 0.3
    assert (dictionary.bias.abs() / alike.std(1)).max() > 0.6


def test_pictures_of_one_colour_give_only_their_colours() -> None:
    plain = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 3, 64, 64) * 20
    for pictures in (plain, plain[:1]):
        dictionary = fit_dictionary(pictures, patches=4).eval()
        with torch.no_grad():
            found = dictionary.forward_features(normalized(pictures).float())
        assert torch.isfinite(found).all() and not found.unflatten(1, (4, -1))[:, :, :8].any()


def test_the_command_makes_a_file_that_initialises_an_encoder(scenes: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    for file in (first, again):
        assert main(["dictionary", f"{scenes}/train", "--out", str(file)]) == 0
    assert first.read_bytes() == again.read_bytes()
    tensors = load_file(first)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "filters": (256, 3, 6, 6),
        "bias": (256,),
        "mean": (515,),
        "scale": (515,),
    }
    config = load_config(TOML, [*TINY, *VISION, f"model.vision_weights={first}"])
    encoder = build_image_encoder(config.model)
    report = fill_image_encoder(encoder, config.model)
    assert {f"trunk.{name}" for name in tensors} == set(report.matched) and not report.left
    for name, tensor in tensors.items():
        assert torch.equal(encoder.vit.trunk.get_parameter(name), tensor)
    assert encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 17, 32)


def test_mistakes_are_refused_in_one_sentence(scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"")
    for words, said in (
        (["--out", str(there)], "exists already"),
        (["--out", str(tmp_path / "new"), "--image-size", "100"], "not a multiple of 16"),
        (["--out", str(there / "below")], "cannot be written"),
    ):
        caplog.clear()
        assert main(["dictionary", f"{scenes}/train", *words]) == 1
        assert said in caplog.text
    for words, said in (
        (["model.vision_weights=pretrained"], "make them with `mvlm dictionary`"),
        (["model.vision_weights=random", "model.vision_args={depth=2}"], "give patches, dropout or embed_dim"),
    ):
        config = load_config(TOML, [*TINY, *VISION, *words])
        with pytest.raises(UserError, match=said):
            fill_image_encoder(build_image_encoder(config.model), config.model)
