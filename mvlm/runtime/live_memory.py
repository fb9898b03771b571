"""The memory of live tensors, on any device."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors that were made while this is active and are still alive.

    Args:
        fake: tensors on torch's meta device count too, which have a size but no memory.

    Attributes:
        live: now.
        peak: the most since this was last set.
    """

    def __init__(self, fake: bool = False) -> None:
        super().__init__()
        self.fake = fake
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {id(storage) for storage in self._storages((args, kwargs))}
        results = func(*args, **(kwargs or {}))
        for storage in self._storages(results):
            if id(storage) not in old and storage not in self._known:
                self._known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return results

    def _change(self, count: int) -> None:
        self.live += count
        self.peak = max(self.peak, self.live)

    def _storages(self, tree: Any) -> list[Any]:
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        return [tensor.untyped_storage() for tensor in tensors if self.fake or not tensor.is_meta]
