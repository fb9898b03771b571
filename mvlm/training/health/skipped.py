"""Batches that a run leaves out after a spike or a NaN, and which samples they held."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np

from mvlm.checkpoint.description import SKIPPED
from mvlm.data.loading.sampler import Sampler
from mvlm.data.shards.corpus import Mixture
from mvlm.errors import cannot_write
from mvlm.runtime import dist
from mvlm.training.health.anomaly import Bad
from mvlm.training.health.lists import read_listed


class Skipped:
    """Stream positions at which a batch to be left out begins, on every rank; `run/skipped.jsonl` keeps them.

    The file outlives a kill between going back and the next checkpoint, so the run that goes on leaves out the same.

    Args:
        positions: known from the checkpoint.
    """

    def __init__(self, run: Path, positions: tuple[int, ...]) -> None:
        self._path = run / SKIPPED
        self.positions = {*positions, *read_listed(self._path, "position")}

    def positions_before(self, position: int) -> tuple[int, ...]:
        return tuple(sorted(p for p in self.positions if p < position))

    def add(self, bad: Bad, global_batch: int, draws: Sampler, mixture: Mixture) -> None:
        """Leave a batch out from now on; all ranks must call, rank 0 writes down its samples.

        Raises:
            UserError: on every rank, where the list cannot be written.
        """
        self.positions.add(bad.position)
        failure = None
        if dist.rank() == 0:
            rows = draws(np.arange(bad.position, bad.position + global_batch))[0].tolist()
            samples = [{"where": mixture.where(row), "key": mixture.key(row)} for row in rows]
            line = {"position": bad.position, "step": bad.step, "reason": bad.reason, "at": time.time()}
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line | {"samples": samples}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                failure = cannot_write(str(self._path), error, "free some room and start again")
        if failure := dist.broadcast_object(failure):
            raise failure
