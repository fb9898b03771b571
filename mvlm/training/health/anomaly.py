"""Watches every step's loss and gradient norm for NaN, infinity and spikes; the host does not wait for the step."""

from __future__ import annotations

import math
import socket
import statistics
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from mvlm.errors import MemoryCorrupted
from mvlm.runtime.log import rank_log

CORRUPTED = "weights or moments had changed in memory since the update before"
MISCOMPUTED = "a micro-batch came out differently on a second rank"
LAG = 2  # steps after which numbers are read: a GPU has them by then, and the host need not wait for it
HISTORY, ENOUGH = 64, 16  # losses that a spike is measured by: the most recent ones, and how many there must be
CORRUPTIONS = 3  # roll-backs that an attempt makes because of memory before it ends
SMALL = 1.0  # nats; losses below it, as near the end of fine-tuning, jump by multiples at a hard batch and fall back


@dataclass(frozen=True)
class Anomaly:
    """A step that went wrong."""

    step: int
    position: int  # in the sample stream, where its batch begins
    reason: str
    is_of_data: bool = True  # its batch may be to blame, and is to be left out


@dataclass(frozen=True)
class _Reading:
    step: int
    position: int
    values_4: Tensor  # loss, gradient norm, corruption, miscomputation of this rank, on the host once `copied` is done
    copied: torch.cuda.Event | None


class AnomalyDetector:
    """Readings wait `LAG` steps; then all ranks exchange them and judge them identically.

    Args:
        spike: a loss above `SMALL` and this many times the median of the last good ones is a spike; 0 = none is.
        recent_losses: of the steps before.
        audits: the rank whose micro-batches this one recomputes, and its node, if it does.
    """

    def __init__(self, spike: float, recent_losses: tuple[float, ...] = (), audits: str = "") -> None:
        self._spike, self._audits, self._corruptions = spike, audits, 0
        self.restart(recent_losses)

    def restart(self, recent_losses: tuple[float, ...]) -> None:
        """Forget all steps, except for these losses."""
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
        miscomputed: Tensor | None = None,
    ) -> None:
        """Record a step: its number, where its batch begins, this rank's loss on the device, the global gradient norm.

        Args:
            overflowed: fp16's loss scaler skipped the update, so that its gradient norm means nothing.
            corrupted: 1.0 if this rank's weights or moments had changed in memory before the update.
            miscomputed: 1.0 if this rank computed other bits for a micro-batch than the rank before it.
        """
        norm = torch.as_tensor(0.0 if grad_norm is None or overflowed else grad_norm).to(loss.device, torch.float32)
        faults = (loss.new_zeros(()) if fault is None else fault for fault in (corrupted, miscomputed))
        values_4 = torch.stack([loss.detach().float(), norm.detach().reshape(()), *(fault.float() for fault in faults)])
        copied = None
        if values_4.is_cuda:
            host_4 = torch.empty(4, pin_memory=True)
            host_4.copy_(values_4, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            values_4 = host_4
        self._readings.append(_Reading(step, position, values_4, copied))

    def due(self, drain: bool = False) -> bool:
        """Whether a reading is old enough to be judged; with `drain`, whether any is left."""
        return len(self._readings) > (0 if drain else LAG - 1)

    def report(self) -> tuple[float, ...]:
        """The oldest reading of this rank, to be averaged over ranks."""
        reading = self._readings[0]
        if reading.copied is not None:
            reading.copied.synchronize()
        loss, norm, corrupted, miscomputed = reading.values_4.tolist()
        if corrupted:
            rank_log.warning(f"before step {reading.step} {CORRUPTED}, seen on {socket.gethostname()}.")
        if miscomputed:
            here = socket.gethostname()
            rank_log.warning(f"in step {reading.step} {MISCOMPUTED}: here, on {here}, than on {self._audits}.")
        return loss, norm, corrupted, miscomputed

    def count_corruption(self, anomaly: Anomaly) -> None:
        """Raise MemoryCorrupted if memory has now been to blame too often in this attempt."""
        self._corruptions += 1
        if self._corruptions > CORRUPTIONS:
            raise MemoryCorrupted(
                f"At step {anomaly.step} {anomaly.reason}, the {self._corruptions}th time in this attempt: "
                "leave out the nodes that the ranks' warnings name, and start the same command again."
            )

    def judge(self, loss: float, grad_norm: float, corrupted: float, miscomputed: float) -> Anomaly | None:
        """Remove the oldest reading, given its means over ranks; returns what is wrong with it, if anything."""
        reading = self._readings.popleft()
        if corrupted or miscomputed:
            fault = CORRUPTED if corrupted else MISCOMPUTED
            return Anomaly(reading.step, reading.position, fault, is_of_data=False)
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
