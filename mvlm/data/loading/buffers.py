"""Memory for the images of micro-batches, reused because touching new memory costs as much as a copy."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvlm.data.shards.mapped import mapped

Shape = tuple[int, int, int, int, int]
"""V views or images of a sample, B samples, C, H, W."""


@dataclass(frozen=True)
class Buffer:
    """Memory to write images into, and a function that then gives the tensor of it, to be called once."""

    images_VBCHW: np.ndarray  # uint8
    lend: Callable[[], Tensor]
    file: int = -1  # descriptor of the memory, if processes share it


class Kept:
    """Buffers of this process; one is reused once nothing refers to its tensor, or to a view of it, any more."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self._free: list[tuple[np.ndarray, int]] = []

    def take(self) -> Buffer:
        images, file = self._free.pop() if self._free else self.make()
        return Buffer(images, lambda: self._lend(images, file), file)

    def make(self) -> tuple[np.ndarray, int]:
        return np.empty(self.shape, np.uint8), -1

    def close(self) -> None:
        """Free what is not lent; what is lent stays as it is."""
        self._free.clear()

    def _lend(self, images: np.ndarray, file: int) -> Tensor:
        view = images.view()  # torch holds on to it as long as any tensor uses its memory
        weakref.finalize(view, self._free.append, (images, file)).atexit = False
        return torch.from_numpy(view)


class Shared(Kept):
    """The same in memory that loader processes map too; it has no name, so that a kill cannot leave it behind."""

    def __init__(self, shape: Shape):
        super().__init__(shape)
        self._files: list[int] = []

    def make(self) -> tuple[np.ndarray, int]:
        file = os.memfd_create("mvlm-images")
        self._files.append(file)
        os.ftruncate(file, int(np.prod(self.shape)))
        return mapped(file, self.shape), file

    def close(self) -> None:
        super().close()
        while self._files:
            os.close(self._files.pop())


class Pinned:
    """Page-locked buffers of torch's own pool, which knows when the copy to the device is done."""

    def __init__(self, shape: Shape):
        self.shape = shape

    def take(self) -> Buffer:
        tensor = torch.empty(self.shape, dtype=torch.uint8, pin_memory=True)
        return Buffer(tensor.numpy(), lambda: tensor)

    def close(self) -> None:
        pass
