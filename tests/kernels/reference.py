"""Compares an implementation's value and gradients with a formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mvlm.kernels.probes import triton_interprets


def value_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The function's value at `inputs` and the gradients of (value * upstream).sum(), all as float64."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves, upstream.to(value.dtype))
    return [value.detach().double(), *(gradient.double() for gradient in gradients)]


def check_against_float64(
    function: Callable[..., Tensor], formula: Callable[..., Tensor], eager: Callable[..., Tensor], *inputs: Tensor
) -> None:
    """fp32 must be within rtol 1e-5 of the formula, and bf16's error at most twice that of eager bf16.

    Triton's interpreter computes bf16 wrongly, so that it is only tested outside of it.
    """
    shape = formula(*(x.double() for x in inputs)).shape
    upstream = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = value_and_gradients(formula, [x.double() for x in inputs], upstream)
    for found, exact in zip(value_and_gradients(function, inputs, upstream), expected, strict=True):
        scale = exact.abs().max().item() if exact.numel() else 0.0
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=2e-6 * max(scale, 1.0))
    if triton_interprets():
        return
    low = [x.bfloat16() for x in inputs]
    upstream = upstream.bfloat16()
    expected = value_and_gradients(formula, [x.double() for x in low], upstream.double())
    ours, eagers = (value_and_gradients(f, low, upstream) for f in (function, eager))
    for found, usual, exact in zip(ours, eagers, expected, strict=True):
        assert error(found, exact) <= 2 * error(usual, exact) + 1e-12


def error(found: Tensor, exact: Tensor) -> float:
    """The root mean square of the differences; 0 if there is nothing to compare."""
    return (found - exact).square().mean().sqrt().item() if exact.numel() else 0.0


def gelu_formula(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


@contextmanager
def saved_tensors() -> Iterator[list[Tensor]]:
    """Collects the tensors that autograd saves for the backward pass."""
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
