"""Micro-batches copied to the device ahead of the step that needs them, while it computes another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mvlm.batch import apply


class Copy(NamedTuple):
    """A batch that will be on the device once `done` has occurred; None = it is there."""

    batch: Any
    done: torch.cuda.Event | None


class DeviceCopies:
    """Copies page-locked memory to a GPU on a separate CUDA stream; to other devices, makes plain copies.

    The host never waits: whatever computes with a batch waits for its copy on the device.

    Args:
        device: where micro-batches go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: Any) -> Copy:
        with torch.cuda.stream(self._stream):  # does nothing for None
            copied = batch.to(self._device)
        return Copy(copied, self._stream.record_event() if self._stream else None)

    def finish(self, copy: Copy) -> Any:
        """The batch, for the current stream to compute with."""
        if copy.done is None:
            return copy.batch
        here = torch.cuda.current_stream(self._device)
        here.wait_event(copy.done)

        def used_here(tensor: Tensor) -> Tensor:
            tensor.record_stream(here)  # or a later copy might get its memory while this stream still reads it
            return tensor

        return apply(copy.batch, used_here)
