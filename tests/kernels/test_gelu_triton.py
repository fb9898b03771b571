"""A feed-forward whose GELU is differentiated in Triton, against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvlm.kernels.gelu_linear import GeluLinear, LinearBeforeGelu, gelu_linear, gelu_linear_fused, linear_before_gelu
from tests.kernels.reference import check_against_float64

SHAPES = pytest.mark.parametrize("shape", [(5, 16, 3), (2, 3, 7, 5), (0, 4, 3), (1, 1, 1), (3, 300, 2)])


def make_inputs(device: torch.device, *shape: int) -> list[Tensor]:
    """Rows that are not contiguous; weights and biases of the two layers for (..., inner, outer)."""
    generator = torch.Generator().manual_seed(0)
    *rows, inner, outer = shape
    x = 2 * torch.randn(*rows, 2 * outer, generator=generator)[..., ::2]
    sizes = (inner, outer), (inner,), (outer, inner), (outer,)
    return [x.to(device), *(torch.randn(size, generator=generator).to(device) for size in sizes)]


@SHAPES
def test_behind_a_layer_whose_bias_it_differentiates(shape: tuple[int, ...], device: torch.device) -> None:
    def fused(x: Tensor, weight: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        hidden, stand_in = linear_before_gelu(x, weight, bias)
        return gelu_linear_fused(hidden, second, second_bias, stand_in)

    def formula(x: Tensor, weight: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        hidden = x @ weight.T + bias
        return (hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2) @ second.T + second_bias

    def eager(x: Tensor, weight: Tensor, bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, weight, bias)), second, second_bias)

    check_against_float64(fused, formula, eager, *make_inputs(device, *shape))


def test_programs_share_many_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """35 rows for two programs: the last has fewer."""
    monkeypatch.setattr("mvlm.kernels.gelu_triton.PROGRAMS", 2)
    _, _, _, weight, bias = make_inputs(device, 1, 6, 2)
    x = torch.randn(35, 6, generator=torch.Generator().manual_seed(3)).to(device)

    stand_in = torch.zeros(6, device=device)  # as if a bias had been added

    def formula(x: Tensor, weight: Tensor, bias: Tensor, stand_in: Tensor) -> Tensor:
        hidden = x + stand_in
        return (hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2) @ weight.T + bias

    def eager(x: Tensor, weight: Tensor, bias: Tensor, stand_in: Tensor) -> Tensor:
        return F.linear(F.gelu(x + stand_in), weight, bias)

    check_against_float64(gelu_linear_fused, formula, eager, x, weight, bias, stand_in)


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias", ""])
def test_layers_reach_it_and_nothing_is_kept_but_their_inputs(frozen: str, device: torch.device) -> None:
    """Freezing any parameter leaves the others' gradients the same."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)).to(device)
    fused = nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)).to(device)
    fused.load_state_dict(plain.state_dict())
    fused[0].__class__, fused[2].__class__ = LinearBeforeGelu, GeluLinear
    x = torch.randn(5, 4, device=device)
    for model in (plain, fused):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name != frozen)
    kept: list[tuple[int, ...]] = []
    gelu_linear.choice, before = "triton", gelu_linear.calls["triton"]
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
            found = fused(x)
    finally:
        gelu_linear.choice = "auto"
    assert gelu_linear.calls["triton"] == before + 1
    assert sorted(kept) == [(3, 6), (5, 4), (5, 6), (6, 4)]
    wanted = plain(x)
    for result in (found, wanted):
        result.square().sum().backward()
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_the_operator_is_well_formed(device: torch.device) -> None:
    from mvlm.kernels import gelu_triton

    arguments = torch.randn(3, 6, device=device), torch.randn(3, 6, device=device), True
    checks = ["test_schema"] + ["test_faketensor"] * (device.type == "cuda")  # the interpreter needs values
    torch.library.opcheck(gelu_triton.gelu_backward_, arguments, test_utils=checks)
