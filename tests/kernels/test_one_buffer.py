"""Gradients of queries, keys and values that are adjacent in memory are passed on without a copy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.layers.attention import Attention as TimmAttention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mvlm.kernels import probes
from mvlm.kernels.attention import attention, by_efficient, by_sdpa, use_attention
from mvlm.kernels.one_buffer import Parts, UnmaskedAttention
from mvlm.model.flops import _RememberedShapes, flop_counter
from tests.kernels.reference import error, value_and_gradients


class SideBySide(torch.autograd.Function):
    """Multiplies three tensors and writes their gradients into one buffer, in a inputs order."""

    @staticmethod
    def forward(ctx: Any, order: list[int], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.order = order
        return inputs[0] * inputs[1] * inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, c = ctx.saved_tensors
        buffer = grad.new_empty(*grad.shape[:-1], 3, grad.shape[-1])
        for place, found in zip(ctx.order, (b * c, a * c, a * b), strict=True):
            buffer[..., place, :] = grad * found
        return None, *(buffer[..., place, :] for place in ctx.order)


class Operations(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("order", "copies"), [([0, 1, 2], 0), ([0, 2, 1], 1), ([2, 1, 0], 1)])
@pytest.mark.parametrize("shape", [(2, 5, 12), (1, 1, 3), (7, 6)])
def test_adjacent_gradients_are_not_copied(order: list[int], copies: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    a, b, c = x.chunk(3, dim=-1)
    expected = torch.autograd.grad((a * b * c).square().sum(), x)[0]
    loss = SideBySide.apply(order, *Parts.apply(x, 3)).square().sum()
    with Operations() as counted:
        found = torch.autograd.grad(loss, x)[0]
    torch.testing.assert_close(found, expected)
    assert counted.calls["cat"] == copies


def test_adjacent_gradients_of_two_of_three_inputs_are_not_copied() -> None:
    """As in cross-attention, whose queries come from another product than its keys and values."""
    a, x = (torch.randn(2, 5, n, dtype=torch.float64, requires_grad=True) for n in (4, 8))
    b, c = x.chunk(2, dim=-1)
    expected = torch.autograd.grad((a * b * c).square().sum(), (a, x))
    loss = SideBySide.apply([0, 1, 2], a, *Parts.apply(x, 2)).square().sum()
    with Operations() as counted:
        found = torch.autograd.grad(loss, (a, x))
    torch.testing.assert_close(found, expected)
    assert counted.calls["cat"] == 0


@pytest.mark.parametrize(("name", "copies"), [("sdpa", 3), ("efficient", 1)])
def test_the_gradients_of_a_vit_are_not_copied(monkeypatch: pytest.MonkeyPatch, name: str, copies: int) -> None:
    """On meta tensors, with which `mvlm plan` counts memory, since torch has these kernels only for GPUs."""
    with torch.device("meta"):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
        image = torch.empty(2, 3, 32, 32)
    layers = [module for module in vit.modules() if isinstance(module, TimmAttention)]
    use_attention(vit)
    monkeypatch.setattr(attention, "choice", name)
    with _RememberedShapes(), Operations() as counted:
        vit(image).sum().backward()
    assert counted.calls["cat"] == copies  # one is the concatenation of CLS and patches
    assert all(layer.qkv.weight.grad.shape == layer.qkv.weight.shape for layer in layers)


def test_its_operations_are_counted_as_those_of_attention() -> None:
    inputs = [torch.empty(2, 3, 7, 8, device="meta", requires_grad=True) for _ in range(3)]
    with flop_counter() as counter:
        UnmaskedAttention.apply(*inputs).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 3 * 7 * 7 * 8) * 2


def test_efficient_attention_runs_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_probed", dict.fromkeys(one.name for one in attention.implementations))
    assert attention.first(*(torch.empty(2, 3, 7, 8, device="meta") for _ in range(3))).name == "sdpa"


@pytest.mark.skipif(probes.cuda() is not None, reason=str(probes.cuda()))
@pytest.mark.parametrize("shape", [(2, 5, 7, 8), (4, 12, 197, 64), (2, 0, 5, 8)])
def test_value_and_gradients(shape: tuple[int, ...]) -> None:
    batch, heads, length, depth = shape
    packed = torch.randn(
        batch, length, 3, heads, depth, device="cuda", generator=torch.Generator("cuda").manual_seed(0)
    )
    upstream = torch.randn(batch, heads, length, depth, dtype=torch.float64).cuda()
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        inputs = [x.transpose(1, 2) for x in packed.to(dtype).unbind(2)]
        exact = value_and_gradients(by_sdpa, [x.double() for x in inputs], upstream)
        for found, wanted in zip(value_and_gradients(by_efficient, inputs, upstream), exact, strict=True):
            assert error(found, wanted) <= bound
