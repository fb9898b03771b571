"""Masked-patch L1 compared with its formula in float64, for which patches are cut out one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mvlm.errors import UserError
from mvlm.kernels.patch_l1 import PATCH_L1

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
ROWS, COLUMNS = 3, 2


@pytest.fixture(params=["triton", "torch"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(PATCH_L1, "choice", request.param)
    return request.param


def differences(pixels: Tensor, image: Tensor, patches: Tensor, size: int, normalized: bool) -> np.ndarray:
    """Predicted minus true values, M x Q in float64."""
    rows, columns = image.shape[2] // size, image.shape[3] // size
    truth = []
    for patch in patches.tolist():
        row, column = divmod(patch % (rows * columns), columns)
        area = image[patch // (rows * columns), :, row * size : (row + 1) * size, column * size : (column + 1) * size]
        values = (np.moveaxis(area.double().cpu().numpy(), 0, -1) / 255 - MEAN.double().numpy()) / STD.double().numpy()
        values = values.flatten()
        if normalized:
            values = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
        truth.append(values)
    return pixels.detach().double().cpu().numpy() - np.array(truth).reshape(pixels.shape)


def images(size: int, generator: torch.Generator, count: int = 3) -> Tensor:
    shape = (count, 3, ROWS * size, COLUMNS * size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uint8": lambda image: image,
    "channels last": lambda image: image.contiguous(memory_format=torch.channels_last),
    "fp32": lambda image: image.float() + 0.25,
    "bf16": lambda image: image.bfloat16(),
    "every other image": lambda image: image.repeat_interleave(2, 0)[::2],
    "cropped": lambda image: torch.nn.functional.pad(image, (3, 1, 2, 5))[:, :, 2:-5, 3:-1],
}


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("size", "layout"), [(s, "uint8") for s in (1, 3, 14, 16)] + [(4, name) for name in LAYOUTS])
def test_sum_and_gradient_match_the_formula(
    size: int, layout: str, normalized: bool, device: torch.device, generator: torch.Generator
) -> None:
    image = LAYOUTS[layout](images(size, generator).to(device))
    patches = torch.tensor([1, 5, 6, 17, 9, 9], device=device)
    pixels = torch.randn(6, 3 * size * size, generator=generator).to(device).requires_grad_()
    found = PATCH_L1(pixels, image, patches, size, MEAN.to(device), STD.to(device), normalized)
    (3 * found).backward()
    expected = differences(pixels, image, patches, size, normalized)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(np.abs(expected).sum(), rel=1e-5)
    assert pixels.grad is not None
    np.testing.assert_array_equal(pixels.grad.cpu().numpy(), 3 * np.sign(expected))


def test_the_error_in_bf16_is_at_most_twice_that_of_eager_bf16(
    device: torch.device, generator: torch.Generator
) -> None:
    image, patches = images(16, generator).to(device), torch.arange(18, device=device)
    pixels = torch.randn(18, 768, generator=generator).bfloat16().to(device).requires_grad_()
    found = PATCH_L1(pixels, image, patches, 16, MEAN.to(device), STD.to(device), False)
    found.backward()
    expected = differences(pixels, image, patches, 16, False)
    truth = torch.from_numpy(pixels.detach().double().cpu().numpy() - expected)
    eager = (pixels.detach().cpu() - truth.bfloat16()).abs().sum().item()
    exact = np.abs(expected).sum()
    assert abs(found.item() - exact) <= 2 * abs(eager - exact)
    assert pixels.grad is not None and pixels.grad.dtype == torch.bfloat16
    np.testing.assert_array_equal(pixels.grad.float().cpu().numpy(), np.sign(expected))


def test_pixels_of_any_stride(device: torch.device, generator: torch.Generator) -> None:
    image, patches = images(4, generator).to(device), torch.tensor([3, 4, 11], device=device)
    pixels = torch.randn(48, 6, generator=generator).to(device)[:, ::2].T
    found = PATCH_L1(pixels, image, patches, 4, MEAN.to(device), STD.to(device), False)
    assert found.item() == pytest.approx(np.abs(differences(pixels, image, patches, 4, False)).sum(), rel=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows(count: int, device: torch.device, generator: torch.Generator) -> None:
    pixels = torch.randn(count, 12, generator=generator).to(device).requires_grad_()
    patches = torch.full((count,), 7, device=device)
    found = PATCH_L1(pixels, images(2, generator).to(device), patches, 2, MEAN.to(device), STD.to(device), False)
    found.backward()
    assert pixels.grad is not None and pixels.grad.shape == (count, 12)
    assert (found.item() > 0) == bool(count)


def test_many_rows(device: torch.device, generator: torch.Generator) -> None:
    """On a GPU, more than a grid's second dimension allows; the interpreter needs milliseconds for each."""
    count = 70_002 if device.type == "cuda" else 60
    image, patches = images(1, generator, count // 6).to(device), torch.arange(count, device=device)
    pixels = torch.randn(count, 3, generator=generator).to(device)
    found = PATCH_L1(pixels, image, patches, 1, MEAN.to(device), STD.to(device), False)
    assert found.item() == pytest.approx(np.abs(differences(pixels, image, patches, 1, False)).sum(), rel=1e-5)


def test_nan_propagates(device: torch.device, generator: torch.Generator) -> None:
    pixels = torch.zeros(1, 12, device=device)
    pixels[0, 3] = float("nan")
    patches = torch.zeros(1, dtype=torch.int64, device=device)
    image = images(2, generator).to(device)
    assert PATCH_L1(pixels, image, patches, 2, MEAN.to(device), STD.to(device), False).isnan()


def test_patches_too_large_for_a_program_are_left_to_torch(
    device: torch.device, generator: torch.Generator, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (torch.zeros(1, 3 * 40 * 40, device=device), images(40, generator).to(device))
    arguments += (torch.zeros(1, dtype=torch.int64, device=device), 40, MEAN.to(device), STD.to(device), False)
    if implementation == "triton":
        with pytest.raises(UserError, match="4800 values"):
            PATCH_L1(*arguments)
    monkeypatch.setattr(PATCH_L1, "choice", "auto")
    assert PATCH_L1.first(*arguments).name == "torch"


def test_the_operator_is_well_formed(device: torch.device, generator: torch.Generator) -> None:
    from mvlm.kernels import patch_l1_triton

    pixels = torch.randn(2, 12, generator=generator).to(device).requires_grad_()
    patches = torch.tensor([3, 4], device=device)
    arguments = (pixels, images(2, generator).to(device), patches, 2, MEAN.to(device), STD.to(device), True)
    checks = ["test_schema", "test_autograd_registration"]
    if device.type == "cuda":  # the interpreter cannot run on tensors without values
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(patch_l1_triton.patch_l1, arguments, test_utils=checks)
