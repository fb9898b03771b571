"""Linear layers and the GELU before them against their formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mvlm.kernels.linear as linear_module
from mvlm.kernels import probes
from mvlm.kernels.fp8 import by_torchao, why_not_torchao
from mvlm.kernels.gelu_linear import gelu_linear_kept, gelu_linear_recomputed
from mvlm.kernels.linear import (
    by_apex,
    by_fp32,
    by_mkl,
    by_onednn,
    by_torch,
    linear,
)
from tests.kernels.reference import check_against_float64, error, value_and_gradients

SOME_SHAPES = [(6, 24, 5), (2, 3, 7, 33), (1, 9, 9), (257, 16, 3)]
SHAPES = pytest.mark.parametrize("shape", SOME_SHAPES)


def make_inputs(*shape: int) -> list[Tensor]:
    """Rows that are not contiguous, weight and bias for (..., inputs, outputs)."""
    generator = torch.Generator().manual_seed(0)
    *rows, inputs, outputs = shape
    x = torch.randn(*rows, 2 * inputs, generator=generator)[..., ::2]
    return [x, torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)]


@pytest.mark.parametrize("zen", [25, 26])
@pytest.mark.parametrize("shape", [*SOME_SHAPES, (5, 400, 384)])
def test_onednn_in_both_directions_where_mkl_is_slow(
    shape: tuple[int, ...], zen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in the third direction, which needs two copies, for wide layers from Zen 5 (family 26) on."""
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset({"AuthenticAMD", "avx512f", str(zen)}))
    x, weight, bias = (t.requires_grad_() for t in make_inputs(*shape))
    products: list[tuple[int, ...]] = []
    product = linear_module._onednn_product
    monkeypatch.setattr(linear_module, "_onednn_product", lambda *a: products.append(a[0].shape) or product(*a))
    found = torch.autograd.grad(by_onednn(x, weight, bias).square().sum(), (x, weight, bias))
    doubles = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad((doubles[0] @ doubles[1].T + doubles[2]).square().sum(), doubles)
    assert len(products) == (3 if zen == 26 and min(weight.shape) >= 384 else 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("shape", [*SOME_SHAPES, (2, 40, 8, 33), (70, 33, 8), (0, 4, 3)])
def test_mkl(shape: tuple[int, ...]) -> None:
    check_against_float64(by_mkl, lambda x, w, b: x @ w.T + b, by_torch, *make_inputs(*shape))


@pytest.mark.parametrize("shape", [*SOME_SHAPES, (2, 40, 8, 33), (0, 4, 3)])
def test_fp32(shape: tuple[int, ...]) -> None:
    check_against_float64(by_fp32, lambda x, w, b: x @ w.T + b, by_torch, *make_inputs(*shape))


def test_fp32_rounds_once_and_keeps_bf16() -> None:
    """A sum of 4,096 products is right to bf16's last digit; products rounded on the way would not be."""
    x, weight, bias = (t.bfloat16().requires_grad_() for t in make_inputs(3, 4096, 5))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = by_fp32(x, weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    assert torch.equal(found, exact.float().bfloat16())
    assert {tensor.dtype for tensor in kept} == {found.dtype} == {torch.bfloat16}
    gradients = torch.autograd.grad(found.sum(), (x, weight, bias))
    assert torch.equal(gradients[1], x.double().sum(0).float().bfloat16().expand(5, -1))


@pytest.mark.parametrize("outputs", [8, 1200])
def test_gradients_are_those_that_an_optimizer_expects(outputs: int) -> None:
    x, weight, bias = (t.requires_grad_() for t in make_inputs(5, 30, outputs))
    by_mkl(x, weight, bias).square().sum().backward()
    assert weight.grad.is_contiguous() and weight.grad.shape == weight.shape and bias.grad.shape == bias.shape


def test_onednn_without_bias_and_without_what_needs_no_gradient() -> None:
    x, weight, _ = make_inputs(4, 6, 5)
    weight.requires_grad_()
    by_onednn(x, weight, None).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, 6))


@pytest.mark.parametrize("run", [gelu_linear_recomputed, gelu_linear_kept])
@pytest.mark.parametrize("shape", [(6, 24, 5), (2, 3, 7, 33), (0, 4, 3)])
def test_gelu_linear(run: Callable, shape: tuple[int, ...]) -> None:
    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (x * (1 + torch.erf(x / math.sqrt(2))) / 2) @ weight.T + bias

    check_against_float64(run, formula, lambda x, w, b: F.linear(F.gelu(x), w, b), *make_inputs(*shape))


def test_a_recomputed_gelu_keeps_half_of_what_a_feed_forward_keeps() -> None:
    kept: dict[str, int] = {}
    for run in (gelu_linear_recomputed, gelu_linear_kept):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x, weight, bias = (t.requires_grad_() for t in make_inputs(64, 32, 8))
        pre_activation = x * 1
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(pre_activation, weight, bias)
        for parameter in (weight, bias):
            sizes.pop(parameter.untyped_storage().data_ptr(), None)
        kept[run.__name__] = sum(sizes.values())
    assert kept["gelu_linear_recomputed"] * 2 == kept["gelu_linear_kept"]


@pytest.mark.parametrize(
    ("flags", "dtype", "name"),
    [
        ("GenuineIntel avx512f amx_bf16", torch.bfloat16, "torch"),
        ("GenuineIntel avx512f amx_bf16", torch.float32, "torch"),
        ("AuthenticAMD avx512f avx512_bf16", torch.float32, "onednn"),
        ("AuthenticAMD avx2", torch.float32, "torch"),
        ("GenuineIntel avx512f avx512_bf16", torch.bfloat16, "fp32"),
        ("AuthenticAMD avx512f avx512_bf16", torch.bfloat16, "torch"),
        ("AuthenticAMD avx2", torch.bfloat16, "fp32"),
        ("GenuineIntel avx512f amx_bf16", torch.float64, "torch"),
    ],
)
def test_which_cpu_takes_what(monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype, name: str) -> None:
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset(flags.split()))
    assert linear.first(*(x.to(dtype) for x in make_inputs(3, 4, 5))).name == name


@pytest.mark.skipif(not probes.HAS_MKL, reason="this torch is built without MKL")
def test_large_layers_in_fp32_take_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset({"GenuineIntel", "avx512f"}))
    assert linear.first(torch.empty(2, 1024, 4), torch.empty(512, 4), None).name == "mkl"
    assert linear.first(torch.empty(2, 1023, 4), torch.empty(512, 4), None).name == "torch"


def test_autocast_is_left_to_torch() -> None:
    inputs = make_inputs(3, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear.first(*inputs).name == "torch"
        assert linear(*inputs).dtype == torch.bfloat16


@pytest.mark.skipif(probes.apex("fused_dense_cuda") is not None, reason=str(probes.apex("fused_dense_cuda")))
@SHAPES
def test_apex(shape: tuple[int, ...]) -> None:
    inputs = (x.cuda() for x in make_inputs(*shape))
    check_against_float64(by_apex, lambda x, w, b: x @ w.T + b, by_torch, *inputs)


@pytest.mark.skipif(why_not_torchao() is not None, reason=str(why_not_torchao()))
def test_fp8() -> None:
    """e4m3 has 3 bits of mantissa and e5m2 two: rounded to the nearest, their errors are 2 and 4 % of a number."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator) for shape in ((3, 24, 64), (48, 64), (48,))]
    upstream = torch.randn(3, 24, 48, generator=generator)
    exact = value_and_gradients(by_torch, inputs, upstream)
    for found, wanted in zip(value_and_gradients(by_torchao, inputs, upstream), exact, strict=True):
        assert error(found, wanted) < 0.08 * wanted.square().mean().sqrt()
    assert not torch.equal(by_torchao(*inputs), by_torch(*inputs))
    compiled = torch.compile(by_torchao, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), by_torchao(*inputs))


def test_fp8_must_be_asked_for_and_leaves_other_sizes_to_torch() -> None:
    x, weight = torch.randn(3, 24), torch.randn(2, 24)
    assert linear.first(x, weight, None).name != "torchao"
    assert torch.equal(by_torchao(x, weight, None), x @ weight.T)
