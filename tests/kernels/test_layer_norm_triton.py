"""Layer norm in Triton, alone and after a residual addition, compared with its formula in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mvlm.kernels.layer_norm import (
    LARGEST,
    LayerNorm,
    by_torch,
    by_triton,
    layer_norm,
    residual_norm,
    residual_norm_by_torch,
    residual_norm_by_triton,
)
from tests.kernels.reference import check_against_float64
from tests.kernels.test_layer_norm import formula, make_inputs

EPS = 1e-6
SHAPES = pytest.mark.parametrize("shape", [(5, 16), (2, 3, 7), (0, 8), (1, 1), (3, 300)])


@SHAPES
def test_layer_norm_alone(shape: tuple[int, ...], device: torch.device) -> None:
    inputs = (x.to(device) for x in make_inputs(*shape))
    check_against_float64(lambda *x: by_triton(*x, EPS), formula, lambda *x: by_torch(*x, EPS), *inputs)


def joined(run: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """The function with its two results concatenated."""
    return lambda *x: torch.cat(run(*x), dim=-1)


@SHAPES
def test_layer_norm_after_an_addition(shape: tuple[int, ...], device: torch.device) -> None:
    x, weight, bias = (t.to(device) for t in make_inputs(*shape))
    branch = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device)

    def by_formula(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return x + branch, formula(x + branch, weight, bias)

    fused = joined(lambda *x: residual_norm_by_triton(*x, EPS))
    eager = joined(lambda *x: residual_norm_by_torch(*x, EPS))
    check_against_float64(fused, joined(by_formula), eager, x, branch, weight, bias)


def test_each_program_computes_many_rows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """11 rows for four programs."""
    monkeypatch.setattr("mvlm.kernels.layer_norm_triton.PROGRAMS", 4)
    inputs = (x.to(device) for x in make_inputs(11, 5))
    check_against_float64(lambda *x: by_triton(*x, EPS), formula, lambda *x: by_torch(*x, EPS), *inputs)


@pytest.mark.parametrize("used", [0, 1])
def test_gradients_if_only_one_result_is_used(used: int, device: torch.device) -> None:
    inputs = [x.to(device) for x in make_inputs(4, 6)]
    inputs.insert(1, inputs[0].flip(0))
    gradients = []
    for run in (residual_norm_by_triton, residual_norm_by_torch):
        leaves = [x.clone().requires_grad_() for x in inputs]
        loss = run(*leaves, EPS)[used].square().sum()
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_layer_uses_it_and_inputs_that_it_cannot_take_are_left_to_torch(device: torch.device) -> None:
    layer, x = LayerNorm(6, device=device), torch.randn(2, 6, device=device)
    for op in (layer_norm, residual_norm):
        op.choice = "triton"
    before = layer_norm.calls["triton"], residual_norm.calls["triton"]
    try:
        torch.testing.assert_close(layer(x), by_torch(x, *layer.parameters(), 1e-5))
        torch.testing.assert_close(layer(x, x), (2 * x, by_torch(2 * x, *layer.parameters(), 1e-5)))
    finally:
        for op in (layer_norm, residual_norm):
            op.choice = "auto"
    assert (layer_norm.calls["triton"], residual_norm.calls["triton"]) == (before[0] + 1, before[1] + 1)
    wide = torch.zeros(1, LARGEST + 1, device=device)
    assert layer_norm.first(wide, wide[0], wide[0], EPS).name == "torch"
    triton = next(one for one in residual_norm.implementations if one.name == "triton")
    assert "more than" in (triton.accepts(wide, wide, wide[0], wide[0], EPS) or "")
    assert "another shape" in (triton.accepts(x, x[:1], x[0], x[0], EPS) or "")


def test_the_operator_is_well_formed(device: torch.device) -> None:
    from mvlm.kernels import layer_norm_triton

    x, weight, bias = (t.to(device).contiguous().requires_grad_() for t in make_inputs(3, 6))
    checks = ["test_schema", "test_autograd_registration"]
    if device.type == "cuda":  # the interpreter cannot run on tensors without values
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(layer_norm_triton.norm_rows, (x, x.detach() + 1, weight, bias, EPS), test_utils=checks)
