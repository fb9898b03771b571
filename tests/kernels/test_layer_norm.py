"""Layer norm compared with its formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvlm.kernels import probes
from mvlm.kernels.layer_norm import by_apex, by_torch
from tests.kernels.reference import check_against_float64


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def make_inputs(*shape: int) -> list[Tensor]:
    """Non-contiguous rows with a mean far from 0, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)[..., ::2]
    return [x, *(torch.randn(shape[-1], generator=generator) for _ in range(2))]


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 7), (0, 8)])
def test_torch(shape: tuple[int, ...]) -> None:
    check_against_float64(lambda *x: by_torch(*x, 1e-6), formula, lambda *x: by_torch(*x, 1e-6), *make_inputs(*shape))


@pytest.mark.skipif(probes.apex("fused_layer_norm_cuda") is not None, reason=str(probes.apex("fused_layer_norm_cuda")))
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 7), (70_000, 3)])
def test_apex(shape: tuple[int, ...]) -> None:
    inputs = (x.cuda() for x in make_inputs(*shape))
    check_against_float64(lambda *x: by_apex(*x, 1e-6), formula, lambda *x: by_torch(*x, 1e-6), *inputs)
