"""Counts a model's work: the matrix products of torch, in models of fake tensors, which compute nothing.

Elementwise work, norms and softmax are left out, as is customary; so are scores that an attention kernel computes a
second time in its backward pass.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from mvlm.batch import apply
from mvlm.errors import UserError
from mvlm.kernels.constants import constant
from mvlm.kernels.layers import use_kernels
from mvlm.kernels.linear import linear
from mvlm.kernels.ops import OPS
from mvlm.model.encoders import Encoders

M = TypeVar("M", bound=Encoders)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(_grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)


def _attention_of_rows(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The same for BLHd."""
    return sdpa_flop_count(*((x[0], x[2], x[1], x[3]) for x in (query, key, value)))


def _attention_of_rows_backward(_grad: Any, *given: Any, **__: Any) -> int:
    return 2 * _attention_of_rows(*given)


def _convolution_backward(grad: Any, x: Any, weight: Any, *given: Any, **__: Any) -> int:
    """Either gradient takes what the forward pass does."""
    *_, transposed, _, _, (of_input, of_weight, _) = given
    return (of_input + of_weight) * conv_flop_count(x, weight, grad, transposed)


def _linear(x: Any, weight_OI: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight_OI[0]


_FUSED = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_FORMULAS: dict[Any, Callable[..., int]] = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{name}"): _attention for name in _FUSED
}
_FORMULAS |= {getattr(torch.ops.aten, f"_scaled_dot_product_{name}_backward"): _attention_backward for name in _FUSED}
_FORMULAS |= {
    torch.ops.aten._efficient_attention_forward: _attention_of_rows,
    torch.ops.aten._efficient_attention_backward: _attention_of_rows_backward,
    torch.ops.aten.convolution_backward: _convolution_backward,
}
if torch.backends.mkldnn.is_available():
    _FORMULAS[torch.ops.mkldnn._linear_pointwise] = _linear
"""Operations that torch's counter counts as nothing, with their repeated scores, or, if a convolution has groups, with
weights between the groups."""


def flop_counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


_COUNTED = flop_counter().flop_registry


def count_flops(work: Callable[[], object]) -> int:
    """Operations of the matrix products in `work`, run once, uncompiled."""
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()


class Products(TorchDispatchMode):
    """The matrix products within, each with its operations and the sizes that it is computed from and for.

    Torch's own counter takes longer: it also takes apart everything else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, set[int]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := _COUNTED.get(func._overloadpacket):
            shapes = [one.shape for one in (*args, result) if isinstance(one, Tensor)]
            self.found.append((formula(*args, **(kwargs or {}), out_val=result), set().union(*shapes)))
        return result

    def total(self) -> int:
        return sum(flops for flops, _ in self.found)

    def with_size(self, size: int) -> int:
        """Operations of those products of which a tensor has a dimension that is a multiple of `size`."""
        return sum(flops for flops, sizes in self.found if any(each % size == 0 for each in sizes))


@contextmanager
def linear_by_torch() -> Iterator[None]:
    """Have linear layers do without the additional products of some CPUs, which no GPU computes."""
    chosen = linear.choice
    linear.choose("torch")
    try:
        yield
    finally:
        linear.choose(chosen)


GPU = "meta"
"""The device of tensors without values that stand for those on a GPU: torch makes none on "cuda" without the driver."""


@contextmanager
def without_values(
    model: M, device: str = GPU, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[M, Callable[[Any], Any]]]:
    """A copy of `model` whose tensors have shapes but no values, and a function that makes a batch so; use both within.

    Operations are those of the device; on a GPU torch's stand for our own kernels.

    Args:
        device: `GPU` or "cpu".
        dtype: of floating point numbers.

    Raises:
        UserError: what the text encoder computes depends on values.
    """

    def without_value(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device=device)

    # Transformers' encoders check whether a tensor is fake before they look at its values.
    is_fake = device != GPU or not model.text.packable
    with (
        _as_on_a_gpu(dtype) if device == GPU else nullcontext(),
        FakeTensorMode(allow_non_fake_inputs=True) if is_fake else _RememberedShapes(),
        _forgotten_constants(),
    ):
        copied = _copy(model, without_value)
        use_kernels(copied)
        try:
            yield copied, lambda batch: apply(batch, without_value)
        except (DataDependentOutputException, DynamicOutputShapeException):
            kind = model.text.settings.model_type
            raise UserError(f"A {kind!r} as model.text cannot be counted: its steps depend on what it reads.") from None


_LAYOUTS: dict[Any, tuple[list[tuple[torch.Size, tuple[int, ...], torch.dtype]], bool]] = {}
"""Layouts of what an operation returned for tensors of certain shapes, and whether that was a tuple."""
MOST_LAYOUTS = 20_000


class _RememberedShapes(TorchDispatchMode):
    """Gives an operation on tensors without values the result that it had on the same shapes before, in any count.

    torch works results out in Python, which for the equal blocks of a deep model takes most of the counting's time.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _makes_new(func):
            return func(*args, **kwargs)
        key = func, _described(args), _described(tuple(kwargs.items()))
        try:
            known = _LAYOUTS.get(key)
        except TypeError:  # something in it has no hash
            return func(*args, **kwargs)
        if known is None:
            result = func(*args, **kwargs)
            each = result if isinstance(result, tuple) else (result,)
            if all(isinstance(one, Tensor) and one.is_meta for one in each) and _share_nothing(each):
                if len(_LAYOUTS) == MOST_LAYOUTS:
                    _LAYOUTS.clear()
                _LAYOUTS[key] = [(one.shape, one.stride(), one.dtype) for one in each], isinstance(result, tuple)
            return result
        layouts, several = known
        made = [torch.empty_strided(shape, stride, dtype=dtype, device=GPU) for shape, stride, dtype in layouts]
        return tuple(made) if several else made[0]


def _share_nothing(tensors: tuple[Tensor, ...]) -> bool:
    return len({tensor.untyped_storage()._cdata for tensor in tensors}) == len(tensors)


@functools.cache
def _makes_new(operation: Any) -> bool:
    """Whether an operation's results share no memory with its arguments, and it changes none of these."""
    schema = operation._schema
    return not schema.is_mutable and all(result.alias_info is None for result in schema.returns)


def _described(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    return tuple(map(_described, argument)) if isinstance(argument, (tuple, list)) else argument


def on_meta(model: M) -> M:
    """A copy of `model` that takes no memory."""
    return _copy(model, lambda tensor: tensor.detach().to("meta"))


def _copy(model: M, change: Callable[[Tensor], Tensor]) -> M:
    changed: dict[int, Any] = {id(buffer): change(buffer) for buffer in model.buffers()}
    changed |= {id(p): nn.Parameter(change(p), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, changed)


@contextmanager
def _as_on_a_gpu(dtype: torch.dtype) -> Iterator[None]:
    choices, attend = {op: op.choice for op in OPS.values()}, F.scaled_dot_product_attention
    try:
        for op in OPS.values():
            if any(implementation.name == "torch" for implementation in op.implementations):
                op.choice = "torch"
        OPS["packed_attention"].choice = "padded" if dtype == torch.float32 else "varlen"
        F.scaled_dot_product_attention = _efficient_attention  # type: ignore[assignment]
        yield
    finally:
        F.scaled_dot_product_attention = attend
        for op, choice in choices.items():
            op.choice = choice


def _efficient_attention(
    query_BHLd: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **_: Any
) -> Tensor:
    """A GPU's fused kernel, in place of torch's function that chooses one: on "meta" it would choose none."""
    if attn_mask is not None:
        attn_mask = torch.zeros_like(attn_mask, dtype=query_BHLd.dtype)
        attn_mask = attn_mask.expand(*query_BHLd.shape[:3], key.shape[2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query_BHLd, key, value, attn_mask, True, dropout_p)[0]


@contextmanager
def _forgotten_constants() -> Iterator[None]:
    """Keep real constants from meeting fake tensors within, and fake constants from meeting real ones after."""
    constant.cache_clear()
    try:
        yield
    finally:
        constant.cache_clear()
