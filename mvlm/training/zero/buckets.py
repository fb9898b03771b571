"""Gradients in buckets, each reduced as soon as it and all buckets before it are complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mvlm.runtime import dist, replicas

FIRST = ("vision", "text", "image_projection", "text_projection", "temperature", "contrastive_bias")
"""What a forward pass uses first, in this order, wherever it is registered: backward reaches it last."""


class Buckets(ABC):
    """Buckets of parameters in the order in which backward reaches them, reduced in that order on every rank.

    It is the same in every step, so that sums are rounded identically after resuming. On a GPU all this happens on a
    stream of its own. A parameter that no objective reads holds up its bucket, and those after it, until backward is
    over.

    Args:
        engine: DeepSpeed's, which no longer reduces anything itself.
        named: names and parameters of what is trained, in one order on every rank.
        size: elements that fill a bucket.
        early: reduce during backward, and not after it. A single rank has nothing to begin early.

    Attributes:
        grad_norm: of the last step's gradient, if it is computed here.
    """

    grad_norm: Tensor | None = None

    def __init__(self, engine: Any, named: Iterable[tuple[str, Parameter]], size: int, early: bool = True) -> None:
        engine.enable_backward_allreduce = False
        self._engine = engine
        self._is_alone = replicas.world() == 1
        self._stream = torch.cuda.Stream() if dist.uses_cuda() and not self._is_alone else None
        self._buckets: list[list[Parameter]] = [[]]
        room = size
        backwards = list(named)[::-1]
        for _, parameter in sorted(backwards, key=lambda one: -_use(one[0])):
            if room <= 0:
                self._buckets.append([])
                room = size
            self._buckets[-1].append(parameter)
            room -= parameter.numel()
        self._missing = list(map(len, self._buckets))
        self._next = 0
        if early and not self._is_alone:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(partial(self._arrived, number))

    def finish(self) -> None:
        """Call after each backward pass: after the last of a step, reduce what is left, with zeros for no gradient."""
        if self._engine.is_gradient_accumulation_boundary():
            while self._next < len(self._buckets):
                self._reduce_next()
            if self._stream:
                torch.cuda.current_stream().wait_stream(self._stream)
        self._missing, self._next = list(map(len, self._buckets)), 0

    @abstractmethod
    def _reduce(self, number: int, bucket: list[Parameter]) -> None:
        """Reduce a bucket, all of whose parameters have gradients."""

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """On a GPU, use the stream of its own, after what has been launched so far."""
        if not self._stream:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def _arrived(self, number: int, _: Tensor) -> None:
        self._missing[number] -= 1
        if self._missing[number] or not self._engine.is_gradient_accumulation_boundary():
            return
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._reduce_next()

    @torch.no_grad()
    def _reduce_next(self) -> None:
        number, bucket = self._next, self._buckets[self._next]
        self._next += 1
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._reduce(number, bucket)


def _use(name: str) -> int:
    """When a forward pass reaches a parameter of this name."""
    part = name.partition(".")[0]
    return FIRST.index(part) if part in FIRST else len(FIRST)
