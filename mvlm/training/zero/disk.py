"""An optimiser's state on a disk: fp32 weights, moments and gradients in mapped files.

DeepSpeed is told that they are on the CPU, and what it allocates for them is put into files: to all that updates, saves
and restores them, they are CPU tensors. DeepSpeed's own offload to disk mixes up the gradients of large parameters
(found in 0.19.8). The kernel reads and writes the files; memory holds what is being worked on, and what there is room
for.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mvlm.errors import UserError
from mvlm.training.zero.start import replaced

aten = torch.ops.aten
COPIED = {aten.clone.default, aten._to_copy.default}
MADE = {*COPIED, aten.zeros.default, aten.zeros_like.default, aten.empty.memory_format}
"""The operations by which DeepSpeed and torch make the optimiser's tensors."""

LEAST = 1 << 16
"""Bytes from which a tensor is worth a file."""

SUB_GROUP = 100_000_000
"""Elements that are updated at once, with 16 bytes of each in memory; a larger parameter is by itself."""


class DiskState:
    """Files that hold an optimiser's state, and vanish with the process.

    Args:
        folder: on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: weakref.WeakSet[Any] = weakref.WeakSet()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Put tensors into files if they are made meanwhile in the way that an optimiser's state is.

        Raises:
            UserError: they cannot be written, or there is no room for them.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _InFiles(self._empty):
                yield
        except OSError as error:
            raise UserError(
                f"The optimizer cannot be offloaded to {self._folder} ({error}): free some room, or set nvme_path."
            ) from None

    @contextmanager
    def holding_optimizer(self) -> Iterator[None]:
        """Put into files what DeepSpeed makes for an optimiser of stage 3, and nothing else that it makes."""
        from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

        set_up = Stage3._setup_for_real_optimizer

        def in_files(optimizer: Any) -> None:
            with self.holding():
                set_up(optimizer)

        with replaced(Stage3, "_setup_for_real_optimizer", in_files):
            yield

    def follow(self, zero: Any) -> None:
        """Release memory whenever a part of the gradients has been stored, and before and after each update.

        Args:
            zero: DeepSpeed's optimiser of stage 3.
        """
        keep = zero.partition_grads

        def partition_grads(*parts: Any) -> Any:
            kept = keep(*parts)
            self.release()
            return kept

        zero.partition_grads = partition_grads
        zero.optimizer.register_step_pre_hook(lambda *_: self.release())
        zero.optimizer.register_step_post_hook(lambda *_: self.release())

    def release(self) -> None:
        """Release the memory that the process has for the files; the kernel writes back what was changed."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros, whose room on the disk is reserved: without room, a write would kill the process."""
        count = math.prod(shape)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            mapped = mmap.mmap(file.fileno(), count * dtype.itemsize)
        self._maps.add(mapped)
        return torch.frombuffer(mapped, dtype=dtype, count=count).view(shape)


def disk_state_of(ds_config: dict[str, Any]) -> DiskState | None:
    """The files of a configuration that has the optimiser on NVMe; None for any other."""
    section = ds_config["zero_optimization"].get("offload_optimizer") or {}
    return DiskState(Path(section["nvme_path"])) if section.get("device") == "nvme" else None


def without_disk(ds_config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that tells DeepSpeed that what is put into files is on the CPU."""
    zero = ds_config["zero_optimization"]
    if disk_state_of(ds_config) is None:
        return ds_config
    return ds_config | {"zero_optimization": zero | {"offload_optimizer": {"device": "cpu", "pin_memory": False}}}


class _InFiles(TorchDispatchMode):
    def __init__(self, empty: Callable[[tuple[int, ...], torch.dtype], Tensor]) -> None:
        super().__init__()
        self._make = empty

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in MADE:
            return func(*args, **kwargs)
        given, like = args[0], torch.is_tensor(args[0])
        shape = tuple(given.shape if like else given)
        dtype = kwargs.get("dtype") or (given.dtype if like else torch.get_default_dtype())
        device = torch.device(kwargs.get("device") or (given.device if like else "cpu"))
        is_state = dtype == torch.float32 or func is aten.zeros.default  # gradients may be kept in 16 bits
        if device.type != "cpu" or not is_state or math.prod(shape) * dtype.itemsize < LEAST:
            return func(*args, **kwargs)
        made = self._make(shape, dtype)
        return made.copy_(given) if func in COPIED else made
