"""Linear layers and the GELU before them, compared with their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mvlm.kernels.linear as linear_module
from mvlm.kernels import probes
from mvlm.kernels.fp8 import by_torchao, why_not_torchao
from mvlm.kernels.gelu_linear import gelu_linear_kept, gelu_linear_recomputed
from mvlm.kernels.linear import by_apex, by_fp32, by_mkl, by_onednn, by_torch, linear
from tests.kernels.reference import (
    check_against_float64,
    error,
    gelu_formula,
    saved_tensors,
    value_and_gradients,
)

SHAPES = [(6, 24, 5), (2, 3, 7, 33), (1, 9, 9), (257, 16, 3)]


def make_inputs(*shape: int) -> list[Tensor]:
    """Non-contiguous rows, weight and bias for a shape (..., inputs, outputs)."""
    generator = torch.Generator().manual_seed(0)
    *rows, inputs, outputs = shape
    x = torch.randn(*rows, 2 * inputs, generator=generator)[..., ::2]
    return [x, torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)]


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


@pytest.mark.parametrize("zen", [25, 26])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 400, 384)])
def test_onednn_computes_the_gradients_where_mkl_is_slow(
    shape: tuple[int, ...], zen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products use it; the weight's gradient, which needs two copies, only for wide layers on Zen 5 (family 26)."""
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset({"AuthenticAMD", "avx512f", str(zen)}))
    x, weight, bias = (t.requires_grad_() for t in make_inputs(*shape))
    products: list[tuple[int, ...]] = []
    product = linear_module._onednn_product

    def counted(left: Tensor, *others: Tensor) -> Tensor:
        products.append(left.shape)
        return product(left, *others)

    monkeypatch.setattr(linear_module, "_onednn_product", counted)
    found = torch.autograd.grad(by_onednn(x, weight, bias).square().sum(), (x, weight, bias))
    doubles = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(formula(*doubles).square().sum(), doubles)
    assert len(products) == (3 if zen == 26 and min(weight.shape) >= 384 else 2)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("run", [by_mkl, by_fp32])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 40, 8, 33), (70, 33, 8), (0, 4, 3)])
def test_value_and_gradients(run: Callable, shape: tuple[int, ...]) -> None:
    check_against_float64(run, formula, by_torch, *make_inputs(*shape))


def test_fp32_rounds_once_and_saves_bf16() -> None:
    """A sum of 4,096 products is right to bf16's last digit, which it would not be if products were rounded."""
    x, weight, bias = (t.bfloat16().requires_grad_() for t in make_inputs(3, 4096, 5))
    with saved_tensors() as saved:
        found = by_fp32(x, weight, bias)
    exact = x.double() @ weight.double().T + bias.double()
    assert torch.equal(found, exact.float().bfloat16())
    assert {tensor.dtype for tensor in saved} == {found.dtype} == {torch.bfloat16}
    gradients = torch.autograd.grad(found.sum(), (x, weight, bias))
    assert torch.equal(gradients[1], x.double().sum(0).float().bfloat16().expand(5, -1))


@pytest.mark.parametrize("outputs", [8, 1200])
def test_gradients_are_contiguous_with_the_shapes_of_the_parameters(outputs: int) -> None:
    x, weight, bias = (t.requires_grad_() for t in make_inputs(5, 30, outputs))
    by_mkl(x, weight, bias).square().sum().backward()
    assert weight.grad.is_contiguous() and weight.grad.shape == weight.shape and bias.grad.shape == bias.shape


def test_onednn_without_a_bias_and_with_an_input_that_needs_no_gradient() -> None:
    x, weight, _ = make_inputs(4, 6, 5)
    weight.requires_grad_()
    by_onednn(x, weight, None).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, 6))


@pytest.mark.parametrize("run", [gelu_linear_recomputed, gelu_linear_kept])
@pytest.mark.parametrize("shape", [(6, 24, 5), (2, 3, 7, 33), (0, 4, 3)])
def test_gelu_linear(run: Callable, shape: tuple[int, ...]) -> None:
    def by_formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return formula(gelu_formula(x), weight, bias)

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(F.gelu(x), weight, bias)

    check_against_float64(run, by_formula, eager, *make_inputs(*shape))


def test_recomputing_the_gelu_halves_what_is_saved() -> None:
    def saved_bytes(run: Callable) -> int:
        """Of activations: the parameters are in memory anyway."""
        x, weight, bias = (t.requires_grad_() for t in make_inputs(64, 32, 8))
        pre_activation = x * 1
        with saved_tensors() as saved:
            run(pre_activation, weight, bias)
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        parameters = {t.untyped_storage().data_ptr() for t in (weight, bias)}
        return sum(size for address, size in sizes.items() if address not in parameters)

    assert saved_bytes(gelu_linear_recomputed) * 2 == saved_bytes(gelu_linear_kept) > 0


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
def test_the_choice_depends_on_cpu_and_precision(
    monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype, name: str
) -> None:
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset(flags.split()))
    assert linear.first(*(x.to(dtype) for x in make_inputs(3, 4, 5))).name == name


@pytest.mark.skipif(not probes.HAS_MKL, reason="this torch is built without MKL")
def test_large_layers_in_fp32_use_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset({"GenuineIntel", "avx512f"}))
    assert linear.first(torch.empty(2, 1024, 4), torch.empty(512, 4), None).name == "mkl"
    assert linear.first(torch.empty(2, 1023, 4), torch.empty(512, 4), None).name == "torch"


def test_autocast_is_left_to_torch() -> None:
    inputs = make_inputs(3, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear.first(*inputs).name == "torch"
        assert linear(*inputs).dtype == torch.bfloat16


@pytest.mark.skipif(probes.apex("fused_dense_cuda") is not None, reason=str(probes.apex("fused_dense_cuda")))
@pytest.mark.parametrize("shape", SHAPES)
def test_apex(shape: tuple[int, ...]) -> None:
    inputs = (x.cuda() for x in make_inputs(*shape))
    check_against_float64(by_apex, formula, by_torch, *inputs)


@pytest.mark.skipif(why_not_torchao() is not None, reason=str(why_not_torchao()))
def test_fp8() -> None:
    """e4m3 has three bits of mantissa and e5m2 two, so that rounding errors are about 2 and 4 % of a number."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator) for shape in ((3, 24, 64), (48, 64), (48,))]
    upstream = torch.randn(3, 24, 48, generator=generator)
    exact = value_and_gradients(by_torch, inputs, upstream)
    for found, wanted in zip(value_and_gradients(by_torchao, inputs, upstream), exact, strict=True):
        assert error(found, wanted) < 0.08 * wanted.square().mean().sqrt()
    assert not torch.equal(by_torchao(*inputs), by_torch(*inputs))
    compiled = torch.compile(by_torchao, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), by_torchao(*inputs))


def test_fp8_runs_only_on_request_and_leaves_unsuitable_sizes_to_torch() -> None:
    x, weight = torch.randn(3, 24), torch.randn(2, 24)
    assert linear.first(x, weight, None).name != "torchao"
    assert torch.equal(by_torchao(x, weight, None), x @ weight.T)
