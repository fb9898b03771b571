"""Checks of an implementation's value and gradients against a formula in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mvlm.kernels.probes import triton_interprets


def value_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The function's value at `inputs` and the gradients of (value x upstream).sum(), all as float64."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves, upstream.to(value.dtype))
    return [value.detach().double(), *(gradient.double() for gradient in gradients)]


def check_against_float64(
    function: Callable[..., Tensor], formula: Callable[..., Tensor], eager: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """fp32 within rtol 1e-5 of the formula in float64; bf16's error at most twice that of eager bf16.

    bf16 is left out in Triton's interpreter, which computes it wrongly.
    """
    shape = formula(*(x.double() for x in inputs)).shape
    upstream = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = value_and_gradients(formula, [x.double() for x in inputs], upstream)
    for found, exact in zip(value_and_gradients(function, inputs, upstream), wanted, strict=True):
        scale = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=2e-6 * max(scale, 1.0))
    if triton_interprets():
        return
    low = [x.bfloat16() for x in inputs]
    upstream = upstream.bfloat16()
    wanted = value_and_gradients(formula, [x.double() for x in low], upstream.double())
    ours, theirs = (value_and_gradients(f, low, upstream) for f in (function, eager))
    for found, usual, exact in zip(ours, theirs, wanted, strict=True):
        assert error(found, exact) <= 2 * error(usual, exact) + 1e-12


def error(found: Tensor, exact: Tensor) -> float:
    """Root mean square."""
    return (found - exact).square().mean().sqrt().item() if exact.numel() else 0.0
