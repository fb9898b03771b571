"""Watches every step's loss and gradient norm for NaN, infinity and spikes; the host does not wait for the step."""

from __future__ import annotations

import math
import socket
import statistics
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from mvlm.runtime.log import rank_log

CORRUPTED = "weights or moments had changed in memory since the update before"
LAG = 2  # steps after which numbers are read: a GPU has them by then, and the host need not wait for it
HISTORY, ENOUGH = 64, 16  # losses that a spike is measured by: the last ones, and how many there must be
SMALL = 1.0  # nats; losses below it, as of fine-tuning near its end, jump by multiples at a hard batch and fall back


@dataclass(frozen=True)
class Anomaly:
    """A step that must not have been."""

    step: int
    position: int  # in the sample stream, where its batch begins
    reason: str
    is_of_data: bool = True  # so that its batch is to be left out


@dataclass(frozen=True)
class _Reading:
    step: int
    position: int
    values_3: Tensor  # this rank's loss, the gradient norm, corruption, on the host once `copied` is done
    copied: torch.cuda.Event | None


class AnomalyDetector:
    """Readings wait `LAG` steps; then all ranks exchange and judge them alike.

    Args:
        spike: a loss above `SMALL` and this many times the median of the last good ones is a spike; 0 = none is.
        recent_losses: of the steps before.
    """

    def __init__(self, spike: float, recent_losses: tuple[float, ...] = ()) -> None:
        self._spike = spike
        self.restart(recent_losses)

    def restart(self, recent_losses: tuple[float, ...]) -> None:
        """Forget all steps but what these losses tell of them."""
        self._losses: deque[float] = deque(recent_losses, maxlen=HISTORY)
        self._readings: deque[_Reading] = deque()

    @property
    def recent_losses(self) -> tuple[float, ...]:
        return tuple(self._losses)

    def watch(
        self,
        step: int,
        position: int,
        loss: Tensor,
        grad_norm: Tensor | float | None,
        overflowed: bool,
        corrupted: Tensor | None = None,
    ) -> None:
        """Note a step: its number, where its batch begins, this rank's loss on the device, the global gradient norm.

        Args:
            overflowed: fp16's loss scaler skipped the update, so that its gradient norm says nothing.
            corrupted: 1.0 where this rank's weights or moments had changed in memory before the update.
        """
        norm = torch.as_tensor(0.0 if grad_norm is None or overflowed else grad_norm).to(loss.device, torch.float32)
        corrupted = loss.new_zeros(()) if corrupted is None else corrupted
        values_3 = torch.stack([loss.detach().float(), norm.detach().reshape(()), corrupted.float()])
        copied = None
        if values_3.is_cuda:
            host_3 = torch.empty(3, pin_memory=True)
            host_3.copy_(values_3, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            values_3 = host_3
        self._readings.append(_Reading(step, position, values_3, copied))

    def due(self, drain: bool = False) -> bool:
        """Whether a reading is old enough to be judged; with `drain`, whether any is left."""
        return len(self._readings) > (0 if drain else LAG - 1)

    def report(self) -> tuple[float, float, float]:
        """The oldest reading of this rank, to be averaged over ranks."""
        reading = self._readings[0]
        if reading.copied is not None:
            reading.copied.synchronize()
        loss, norm, corrupted = reading.values_3.tolist()
        if corrupted:
            rank_log.warning(f"before step {reading.step} {CORRUPTED}, seen on {socket.gethostname()}.")
        return loss, norm, corrupted

    def judge(self, loss: float, grad_norm: float, corrupted: float) -> Anomaly | None:
        """Take the oldest reading off, given its means over ranks; what is wrong with it, if anything."""
        reading = self._readings.popleft()
        if corrupted:
            return Anomaly(reading.step, reading.position, CORRUPTED, is_of_data=False)
        reason = self._wrong(loss, grad_norm)
        if reason:
            return Anomaly(reading.step, reading.position, reason)
        self._losses.append(loss)
        return None

    def _wrong(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient's norm is {grad_norm}"
        if self._spike and len(self._losses) >= ENOUGH:
            usual = statistics.median(self._losses)
            if loss > max(self._spike * usual, SMALL):
                return f"the loss is {loss:.4g}, {loss / usual:.1f} times the median {usual:.4g} of the steps before"
        return None
