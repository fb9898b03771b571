"""Reduces stage 0's gradients during backward, while DeepSpeed itself would begin only after it.

And frees them without the walks through all modules by which DeepSpeed finds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.nn import Parameter

from mvlm.training.zero.buckets import Buckets


class Reduction(Buckets):
    """Has DeepSpeed reduce a bucket of gradients.

    A single rank has nothing to reduce; DeepSpeed itself would copy all gradients even so.

    Args:
        engine: DeepSpeed's, at stage 0.
    """

    def __init__(self, engine: Any, named: Iterable[tuple[str, Parameter]], size: int) -> None:
        super().__init__(engine, named, size)
        engine.zero_grad = self._forget

    def _forget(self) -> None:
        for bucket in self._buckets:
            for parameter in bucket:
                parameter.grad = None

    def _reduce(self, number: int, bucket: list[Parameter]) -> None:
        if not self._is_alone:
            with self._apart():
                self._engine.buffered_allreduce_fallback(grads=[parameter.grad for parameter in bucket])
