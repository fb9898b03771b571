"""Attention compared with its formula in float64, its use in timm's layers, and which implementation is chosen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from mvlm.errors import UserError
from mvlm.kernels import probes
from mvlm.kernels.attention import (
    DispatchedAttention,
    _why_not_fa3,
    attention,
    by_cudnn,
    by_fa3,
    by_fp32,
    by_products,
    by_sdpa,
    use_attention,
)
from tests.kernels.reference import check_against_float64, saved_tensors, value_and_gradients

EACH_IMPLEMENTATION = pytest.mark.parametrize("run", [by_products, by_sdpa, by_fp32, by_cudnn, by_fa3])


def formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ value


def make_inputs(batch: int, queries: int, keys: int, depth: int) -> list[Tensor]:
    """Query, key and value with strided heads, as linear layers produce them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, n, 3, depth, generator=generator).transpose(1, 2) for n in (queries, keys, keys)]


@EACH_IMPLEMENTATION
@pytest.mark.parametrize("shape", [(2, 7, 5, 8), (1, 1, 1, 3), (2, 9, 40, 8), (2, 0, 5, 8), (0, 4, 5, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradients(run: Callable, shape: tuple[int, int, int, int], masked: bool) -> None:
    inputs = make_inputs(*shape)
    mask = (torch.arange(shape[2]) <= torch.arange(shape[0])[:, None])[:, None, None] if masked else None
    check_against_float64(lambda *x: run(*x, mask), lambda *x: formula(*x, mask), lambda *x: by_sdpa(*x, mask), *inputs)


@EACH_IMPLEMENTATION
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_whose_keys_are_all_masked_gives_finite_values_and_gradients(run: Callable, dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in make_inputs(2, 4, 5, 8)]
    mask = torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 1, 5)
    for tensor in value_and_gradients(lambda *x: run(*x, mask), inputs, torch.ones(2, 3, 4, 8)):
        assert tensor.isfinite().all()


@EACH_IMPLEMENTATION
def test_dropout_preserves_the_mean(run: Callable) -> None:
    torch.manual_seed(0)
    query, key, value = make_inputs(1, 2, 64, 8)
    outputs = torch.stack([run(query, key, value, None, 0.3) for _ in range(2000)])
    assert outputs.std(0).min() > 0.01
    torch.testing.assert_close(outputs.mean(0), run(query, key, value), atol=0.03, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_fp32_saves_bf16_for_the_backward_pass(masked: bool) -> None:
    inputs = [x.bfloat16().requires_grad_() for x in make_inputs(2, 9, 40, 8)]
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool) if masked else None
    with saved_tensors() as saved:
        attended = by_fp32(*inputs, mask)
    normalisation = (2, 3, 9)  # of the softmax, one number for each query and head
    assert {x.dtype for x in saved if x.shape != normalisation} - {torch.bool} == {torch.bfloat16}
    torch.testing.assert_close(attended, by_sdpa(*inputs, mask), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("flags", "dtype", "name"),
    [
        ("avx512f", torch.float64, "sdpa"),
        ("avx512f amx_bf16", torch.bfloat16, "products"),
        ("avx512f", torch.bfloat16, "fp32"),
        ("avx2", torch.float16, "products"),
    ],
)
def test_the_choice_depends_on_cpu_and_precision(
    monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype, name: str
) -> None:
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset(flags.split()))
    assert attention.first(*(x.to(dtype) for x in make_inputs(1, 2, 3, 4))).name == name


@pytest.mark.skipif(not probes.HAS_MKL, reason="this torch is built without MKL")
@pytest.mark.parametrize(
    ("queries", "keys", "name"),
    [
        (197, 30, "products"),
        (30, 30, "products"),
        (197, 197, "sdpa"),
        (30, 197, "sdpa"),
        (1, 30, "sdpa"),
        (591, 30, "sdpa"),
    ],
)
def test_fp32_uses_products_for_the_few_keys_of_a_text(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, name: str
) -> None:
    monkeypatch.setattr(probes, "CPU_FLAGS", frozenset({"GenuineIntel", "avx512f"}))
    query, key, value = (torch.empty(1, 2, length, 4) for length in (queries, keys, keys))
    assert attention.first(query, key, value).name == name


def test_a_vit_uses_it_and_keeps_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).double()
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    names, expected, before = [*vit.state_dict()], vit(image), attention.calls.total()
    use_attention(vit)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # which timm would call
    attention.choose("products")
    try:
        found = vit(image)
    finally:
        attention.choose("auto")
    torch.testing.assert_close(found, expected)
    assert attention.calls.total() == before + 2
    assert [*vit.state_dict()] == names
    assert all(type(block.attn) is DispatchedAttention for block in vit.blocks)


def test_cudnn_compiles_to_one_graph_and_runs_only_on_request() -> None:
    inputs = make_inputs(2, 7, 5, 8)
    found = torch.compile(by_cudnn, backend="eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(found, formula(*inputs))
    assert attention.first(*inputs).name != "cudnn"
    cudnn = next(one for one in attention.implementations if one.name == "cudnn")
    assert cudnn.pays(*inputs)


def test_torchs_flash_attention_3_is_active_while_fa3_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's switch replaced and the probe for a GPU and the package skipped."""
    assert attention.lacking()["fa3"] in ("this torch is built without CUDA", "no CUDA device")
    switches: list[str] = []
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", switches.append)
    monkeypatch.setattr(torch.nn.attention, "restore_flash_attention_impl", lambda: switches.append("restored"))
    monkeypatch.setitem(attention._probed, "fa3", None)
    inputs = make_inputs(2, 7, 5, 8)
    assert attention.first(*inputs).name != "fa3"
    try:
        attention.choose("fa3")
        attention.choose("fa3")
        assert switches == ["FA3"]
        torch.testing.assert_close(attention(*inputs), formula(*inputs))
        with pytest.raises(UserError, match="not known"):
            attention.choose("fa4")
        assert switches == ["FA3"]
    finally:
        attention.choose("auto")
    assert switches == ["FA3", "restored"]


def test_the_reason_why_fa3_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert _why_not_fa3() == "it is for GPUs of compute capability 9"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert _why_not_fa3() == "flash_attn_interface is not installed"
    monkeypatch.delattr(torch.nn.attention, "list_flash_attention_impls")
    assert _why_not_fa3() == "this torch does not offer it"
