"""Preemption: a signal becomes a flag that the loop reads and all ranks agree on."""

from __future__ import annotations

import signal
from types import FrameType

import torch

from mvlm import dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Set by SIGTERM or SIGUSR1 on any rank."""

    def __init__(self) -> None:
        self._set = False
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True

    def agreed(self) -> bool:
        """Whether any rank was told to stop; all ranks must call. It travels over the host, not the accelerator."""
        return bool(dist.all_reduce(torch.tensor(int(self._set)), "max"))
