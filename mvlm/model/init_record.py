"""Records all that fills the tensors of a model while it is built on torch's meta device, which takes no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
IS_META: Any = Tensor.is_meta.__get__  # type: ignore[attr-defined]


class StoragePart(NamedTuple):
    """A tensor on the meta device, as a part of its storage."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> StoragePart:
        storage = tensor.untyped_storage()._cdata
        return cls(storage, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    @property
    def is_contiguous(self) -> bool:
        return self.stride == torch.empty(self.size, device="meta").stride()

    def is_all_of(self, whole: StoragePart) -> bool:
        """Whether it is all elements of a tensor, in their order."""
        return (self.storage, self.offset, self.numel) == (whole.storage, 0, whole.numel) and self.is_contiguous


class Operation(NamedTuple):
    """A call that filled tensors.

    Attributes:
        arguments: positional and keyword ones, with a `StoragePart` in place of each tensor on the meta device.
        changes, makes: the tensors that it wrote into, and those that it made.
    """

    function: Any
    arguments: tuple[Sequence[Any], dict[str, Any]]
    changes: tuple[StoragePart, ...]
    makes: tuple[StoragePart, ...]

    @property
    def reads(self) -> list[StoragePart]:
        return [leaf for leaf in _leaves(self.arguments) if isinstance(leaf, StoragePart)]

    def overwrites(self, whole: StoragePart) -> bool:
        """Whether it leaves nothing of what was in a tensor before."""
        return self.function in OVERWRITING and self.changes[0].is_all_of(whole)

    def span(self, whole: StoragePart) -> range | None:
        """Which elements of a flattened tensor it changes, each by itself; None if other tensors take part, or the
        order is another."""
        by_itself = self.function in DRAWING or torch.Tag.pointwise in self.function.tags
        given = [leaf for leaf in _leaves(self.arguments) if isinstance(leaf, Tensor) and leaf.ndim]
        if given or len(self.reads) != 1 or self.reads != list(self.changes):
            return None
        (part,) = self.reads
        if part.is_all_of(whole):
            return range(whole.numel) if by_itself or self.function in OVERWRITING else None
        is_filled = self.function in FILLING and part.storage == whole.storage and part.is_contiguous
        return range(part.offset, part.offset + part.numel) if is_filled else None


def truncated_normal(target: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None) -> Tensor:
    return nn.init.trunc_normal_(target, mean, std, a, b, generator)


DRAWING: dict[Any, Callable[..., Tensor]] = {
    aten.normal_.default: Tensor.normal_,
    aten.uniform_.default: Tensor.uniform_,
    truncated_normal: truncated_normal,
}
"""Recorded operations that draw each element by itself, and the functions that do so with a generator."""

FILLING = {aten.fill_.Scalar, aten.zero_.default}
OVERWRITING = {*DRAWING, *FILLING, aten.copy_.default}


class InitRecord(TorchDispatchMode):
    """What fills tensors on the meta device, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no new one takes an address again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fills = (func in DRAWING or func in FILLING) and _is_on_meta(args[0])  # would do nothing there
        found = args[0] if fills else func(*args, **kwargs)
        changed = [
            tensor
            for place, name in _written(func)
            for tensor in _on_meta(args[place] if place < len(args) else kwargs.get(name))
        ]
        new = [] if _leaves_as_found(func) else _on_meta(found)
        if new:
            given = {tensor.untyped_storage()._cdata for tensor in _on_meta((args, kwargs))}
            new = [tensor for tensor in new if tensor.untyped_storage()._cdata not in given]
        if changed or new:
            self.add(func, (args, kwargs), changed, new)
        return found

    def add(self, function: Any, arguments: Any, changed: Sequence[Tensor], new: Sequence[Tensor] = ()) -> None:
        for tensor in (*_on_meta(arguments), *new):
            storage = tensor.untyped_storage()
            self.storages[storage._cdata] = storage
        described = _described(arguments)
        self.operations.append(
            Operation(function, described, tuple(map(StoragePart.of, changed)), tuple(map(StoragePart.of, new)))
        )

    def trunc_normal(
        self, tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None
    ) -> Tensor:
        """Stands in for torch's own."""
        self.add(truncated_normal, ((tensor, mean, std, a, b), {}), [tensor])
        return tensor


class _AsOnTheCPU(TorchFunctionMode):
    """Has torch.tensor make its values on the CPU, where they can be recorded before they are lost, and hides from code
    that skips tensors on the meta device that they are there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and "device" not in kwargs:
            return func(*args, **{**kwargs, "device": "cpu"}).to("meta")
        if func == IS_META:
            return False
        return func(*args, **kwargs)


@contextmanager
def recorded() -> Iterator[InitRecord]:
    """Make tensors on the meta device within the block, and record what fills them."""
    record = InitRecord()
    with ExitStack() as stack:
        stack.enter_context(_trunc_normal_as(record.trunc_normal))
        for mode in (torch.device("meta"), _AsOnTheCPU(), record):
            stack.enter_context(mode)
        yield record


@contextmanager
def _trunc_normal_as(function: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the function by which torch draws truncated normals: its own looks at the values that it has drawn."""
    own = nn.init._no_grad_trunc_normal_
    nn.init._no_grad_trunc_normal_ = function
    try:
        yield
    finally:
        nn.init._no_grad_trunc_normal_ = own


def _leaves(tree: Any) -> Iterator[Any]:
    """What torch's own walk finds, in a fifth of its time; building a model takes thousands of walks."""
    if isinstance(tree, (tuple, list, dict)) and not isinstance(tree, StoragePart):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(branch)
    else:
        yield tree


def _is_on_meta(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "meta"


def _on_meta(tree: Any) -> list[Tensor]:
    return list(filter(_is_on_meta, _leaves(tree)))


def _described(tree: Any) -> Any:
    """The same with a `StoragePart` in place of each tensor on the meta device."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(map(_described, tree))
    if isinstance(tree, dict):
        return {key: _described(branch) for key, branch in tree.items()}
    return StoragePart.of(tree) if _is_on_meta(tree) else tree


@cache
def _written(function: Any) -> tuple[tuple[int, str], ...]:
    """The places and names of the arguments that a call changes."""
    arguments = enumerate(function._schema.arguments)
    return tuple((place, each.name) for place, each in arguments if each.alias_info and each.alias_info.is_write)


@cache
def _leaves_as_found(function: Any) -> bool:
    """Whether an operation leaves its result's memory as it finds it."""
    return "empty" in function.overloadpacket.__name__
