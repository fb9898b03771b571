"""One rank of a run that only waits and exchanges sums; a scenario may disturb it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mvlm.runtime import dist
from mvlm.runtime.background import BackgroundSum
from mvlm.training.health.watchdog import Watchdog

SECONDS = 2.0
"""Time without progress after which a rank counts as stuck."""
ATTEMPT, STEPS, AT = 3, 8, 4
FOREVER = 1000.0


DISTURB: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "sleeps": lambda: time.sleep(FOREVER),
    "sleeps beside the exchange": lambda: time.sleep(FOREVER),
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "keeps the lock": lambda: ctypes.PyDLL(None).sleep(int(FOREVER)),
    "dawdles": lambda: [time.sleep(SECONDS / 40) for _ in range(16)],  # a suspended process still has the rest to sleep
    "takes long": lambda: time.sleep(2.5 * SECONDS),
}


def work(run: Path, rank: int, port: int, disturbed: int, how: str) -> None:
    """Run one of two ranks; in step AT `disturbed` is disturbed while it waits for data or just before the exchange."""
    at_data = how != "sleeps beside the exchange"
    with open(run / f"stderr-{rank}", "wb") as stderr:
        os.dup2(stderr.fileno(), 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init()
    with Watchdog(run, ATTEMPT, SECONDS / 60) as watchdog:
        for step in range(STEPS):
            watchdog.at(step, "waiting for data", patience=10 if how == "takes long" else 1)
            time.sleep(0.05)
            hit = step == AT and rank == disturbed
            if hit and at_data:
                DISTURB[how]()
            watchdog.at(step, "agreeing with the other ranks")
            if hit and not at_data:
                DISTURB[how]()
            BackgroundSum(torch.ones(1)).wait()  # as the trainer does
    dist.close()
