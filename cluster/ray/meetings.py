"""What all workers of an attempt do together every few seconds, as Ray Train requires for reports."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero

from ..processes import PATIENCE
from ..record import last_training_line, latest_checkpoint

PERIOD_SECONDS = 5.0
LAST_SECONDS = 15.0  # that a worker waits for the others to come to the last meeting
POINTER = "checkpoint.json"


class Meetings(threading.Thread):
    """Report each new checkpoint to Ray Train, and have the ranks save when one of their nodes is about to go.

    A checkpoint stays where the run has saved it, and the run may remove it later: what is reported is a folder with
    its path. In a thread, since a worker that does not come holds up the others, which have ranks to watch over.
    """

    def __init__(self, run: Path, reports: Path, coordinator: Any, attempt: int, rank: int) -> None:
        super().__init__(daemon=True)
        self._run, self._reports, self._coordinator = run, reports, coordinator
        self._attempt, self._rank, self._over = attempt, rank, threading.Event()
        self._reported, self._is_going = latest_checkpoint(run), False

    def run(self) -> None:
        with contextlib.suppress(RayError):  # Ray ends the workers
            while not self._meet():
                pass

    def end(self) -> None:
        """Meet once more, as all workers do when their attempt is over."""
        self._over.set()
        self.join(LAST_SECONDS)

    def _meet(self) -> bool:
        """Meet once; returns whether it was the last time."""
        is_over = self._over.wait(PERIOD_SECONDS)
        latest = latest_checkpoint(self._run) if self._rank == 0 else None
        news = (latest, latest != self._reported, is_over)
        latest, is_new, is_last = broadcast_from_rank_zero(news)
        if latest and is_new:
            self._report(latest)
        is_going = ray.train.get_preemption_info() is not None
        if is_going and not self._is_going and self._rank == 0:
            self._coordinator.drain.remote("a node is about to go", PATIENCE)
        self._is_going = is_going
        return is_last

    def _report(self, latest: str) -> None:
        self._reported = latest
        pointer, metrics = None, {}
        if self._rank == 0:
            folder = self._reports / f"{self._attempt:03d}-{latest}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / POINTER).write_text(json.dumps({"path": str(self._run / "checkpoints" / latest)}))
            pointer, metrics = Checkpoint.from_directory(folder), last_training_line(self._run) or {}
        ray.train.report(metrics, checkpoint=pointer, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
