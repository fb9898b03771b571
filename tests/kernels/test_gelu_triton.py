"""A feed-forward whose GELU is differentiated in Triton, compared with its formula in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvlm.kernels.gelu_linear import GeluLinear, LinearBeforeGelu, gelu_linear, gelu_linear_fused, linear_before_gelu
from tests.kernels.reference import check_against_float64, gelu_formula, saved_tensors


def make_inputs(device: torch.device, *shape: int) -> list[Tensor]:
    """Non-contiguous rows, and the weights and biases of two layers, for a shape (..., inner, outer)."""
    generator = torch.Generator().manual_seed(0)
    *rows, inner, outer = shape
    x = 2 * torch.randn(*rows, 2 * outer, generator=generator)[..., ::2]
    sizes = (inner, outer), (inner,), (outer, inner), (outer,)
    return [x.to(device), *(torch.randn(size, generator=generator).to(device) for size in sizes)]


@pytest.mark.parametrize("shape", [(5, 16, 3), (2, 3, 7, 5), (0, 4, 3), (1, 1, 1), (3, 300, 2)])
def test_gelu_between_two_linear_layers(shape: tuple[int, ...], device: torch.device) -> None:
    def fused(x: Tensor, weight: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        hidden, stand_in = linear_before_gelu(x, weight, bias)
        return gelu_linear_fused(hidden, second, second_bias, stand_in)

    def formula(x: Tensor, weight: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        return gelu_formula(x @ weight.T + bias) @ second.T + second_bias

    def eager(x: Tensor, weight: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, weight, bias)), second, second_bias)

    check_against_float64(fused, formula, eager, *make_inputs(device, *shape))


def test_each_program_computes_many_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """35 rows for two programs, of which the second has fewer."""
    monkeypatch.setattr("mvlm.kernels.gelu_triton.PROGRAMS", 2)
    _, _, _, weight, bias = make_inputs(device, 1, 6, 2)
    x = torch.randn(35, 6, generator=torch.Generator().manual_seed(3)).to(device)
    stand_in = torch.zeros(6, device=device)  # as if a bias had been added

    def formula(x: Tensor, weight: Tensor, bias: Tensor, stand_in: Tensor) -> Tensor:
        return gelu_formula(x + stand_in) @ weight.T + bias

    def eager(x: Tensor, weight: Tensor, bias: Tensor, stand_in: Tensor) -> Tensor:
        return F.linear(F.gelu(x + stand_in), weight, bias)

    check_against_float64(gelu_linear_fused, formula, eager, x, weight, bias, stand_in)


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias", ""])
def test_the_layers_use_it_and_save_only_their_inputs_and_weights(frozen: str, device: torch.device) -> None:
    """Freezing a parameter does not change the gradients of the others."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).to(device)
    fused = nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)).to(device)
    fused.load_state_dict(plain.state_dict())
    fused[0].__class__, fused[2].__class__ = LinearBeforeGelu, GeluLinear
    x = torch.randn(5, 4, device=device)
    for model in (plain, fused):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name != frozen)
    gelu_linear.choice, before = "triton", gelu_linear.calls["triton"]
    try:
        with saved_tensors() as saved:
            found = fused(x)
    finally:
        gelu_linear.choice = "auto"
    assert gelu_linear.calls["triton"] == before + 1
    assert sorted(tuple(tensor.shape) for tensor in saved) == [(3, 6), (5, 4), (5, 6), (6, 4)]
    expected = plain(x)
    for result in (found, expected):
        result.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_the_operator_is_well_formed(device: torch.device) -> None:
    from mvlm.kernels import gelu_triton

    arguments = torch.randn(3, 6, device=device), torch.randn(3, 6, device=device), True
    checks = ["test_schema"] + ["test_faketensor"] * (device.type == "cuda")  # the interpreter needs values
    torch.library.opcheck(gelu_triton.gelu_backward_, arguments, test_utils=checks)
