"""What the ranks tell each other between two steps."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mvlm.runtime import dist


class StepFlags(NamedTuple):
    """What one rank says of itself; once exchanged, on every rank, how many say so."""

    signalled: int = 0
    orphaned: int = 0
    time_is_up: int = 0
    superseded: int = 0
    gone: int = 0  # the run folder
    written: int = 0
    uploaded: int = 0
    faults: int = 0  # their number
    waiting: int = 0  # for a store of shards that is gone
    without_data: int = 0  # for good

    @property
    def reason_to_stop(self) -> str | None:
        if self.signalled:
            return "by a signal"
        if self.orphaned:
            return "because the launcher has died"
        return "because the time is nearly up" if self.time_is_up else None


def sync_ranks(own: StepFlags, loss: float, grad_norm: float) -> tuple[StepFlags, float, float]:
    """The sums of all ranks' flags and the means of their numbers, alike on all; it travels over the host."""
    told = torch.tensor([*map(float, own), loss, grad_norm], dtype=torch.float64)
    *counts, loss, grad_norm = dist.all_reduce(told).tolist()
    return StepFlags(*map(int, counts)), loss / dist.world(), grad_norm / dist.world()
