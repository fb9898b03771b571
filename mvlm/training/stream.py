"""A run's samples as this rank's micro-batches, from any position on, without the batches that are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvlm.checkpoint.state import OrderSpec, TrainState
from mvlm.config.schema import Data, Train
from mvlm.data.loading.device import DeviceCopies
from mvlm.data.loading.loader import Loader
from mvlm.data.loading.prefetch import start_prefetcher
from mvlm.data.loading.sampler import make_sampler, order_of, resumed
from mvlm.data.loading.streams import Drawing
from mvlm.data.samples.dataset import ShardDataset
from mvlm.errors import ExitCode, UserError, first_line
from mvlm.runtime import dist, replicas
from mvlm.training.health.anomaly import Anomaly
from mvlm.training.health.quarantine import Quarantine, Skipped

LOOK_S = 1.0  # between two checks whether late data can still come
REPORTED = 3  # ranks whose errors are reported when data are lost


class TrainingStream:
    """Begins at the position of a state, and again after each roll-back.

    Args:
        run: gets the lists of what is left out.
        micro_batch: pairs of a forward pass of this rank.
        say: gets a sentence if the order of the samples changes.

    Attributes:
        per_epoch: samples.
        order: of the samples from here on.
        lost: why this rank gets no more data, if so.
    """

    def __init__(
        self,
        dataset: ShardDataset[Any],
        data: Data,
        train: Train,
        run: Path,
        seed: int,
        micro_batch: int,
        state: TrainState,
        say: Callable[[str], None],
    ) -> None:
        self.global_batch, self.per_epoch = train.global_batch, len(dataset)
        self.quarantine = Quarantine(run, data.tolerance, len(dataset.mixture))
        self.skipped = Skipped(run, state.skipped, train.max_skipped, state.samples_seen, train.global_batch)
        self.order: tuple[OrderSpec, ...] = ()
        self._drawing = Drawing.of(state, dataset.mixture, seed)
        self._shift = self._drawing.shift if self._drawing else 0
        dataset.is_continued = self._drawing is not None and self._drawing.is_continued
        self._dataset, self._mixture, self._data = dataset, dataset.mixture, data
        self._seed, self._micro_batch, self._say = seed, micro_batch, say
        self._copies = DeviceCopies(dist.device())
        self.restart(state)

    def restart(self, state: TrainState) -> None:
        """Begin at the position of a state, after `close`."""
        position, data, drawing = state.samples_seen, self._data, self._drawing
        if drawing and drawing.takes_turns:  # each of its streams has an order of its own
            self.order, change = state.order, ""
        else:
            orders = state.order or self.order
            self.order, change = resumed(orders, order_of(data), position + self._shift, self.per_epoch)
        if change:
            self._say(change)
        self.lost = self.quarantine.excess
        if drawing:
            self._sampler = drawing.sampler(self.order)
        else:
            self._sampler = make_sampler(self._mixture, self._seed, self.order)
        self.loader = Loader(
            self._dataset,
            self._sampler,
            global_batch=self.global_batch,
            micro_batch=self._micro_batch,
            rank=replicas.rank(),
            world=replicas.world(),
            start_position=position,
            skip=self.skipped.positions,
            workers=data.workers,
            worker_mode=data.worker_mode,
            prefetch=data.prefetch,
            pin=dist.uses_cuda(),
            copies=self._copies,
            prefetcher=start_prefetcher(self._mixture, self._sampler, position),
        )

    def epochs(self, samples: int) -> float:
        """How many epochs of the run's present data have been drawn when it has seen so many samples."""
        return (samples + self._shift) / self.per_epoch

    def close(self) -> None:
        self.loader.close()

    def wait(self, must_stop: Callable[[], bool]) -> bool:
        """Whether the next step's data are there, or known to be lost.

        Waits for them, unless their store is gone, which may last while the ranks must hear from each other, or this
        rank has a reason to stop.
        """
        try:
            while not self.loader.ready(LOOK_S):
                if self._mixture.cache.outages.reasons or must_stop():
                    return False
        except UserError as error:
            self.lost = error
        return True

    def is_here(self) -> bool:
        """Whether the next step's data are there already; if so, their copies to the device begin.

        If something is wrong with them, `wait` will raise it.
        """
        try:
            return self.loader.ready(0.0)
        except Exception:
            return False

    def why_lost(self) -> tuple[str, ExitCode]:
        """The errors of the ranks that have lost their data, and the code that all end with; all ranks must call."""
        if self.quarantine.excess:  # every rank will report it in full
            return "too many images cannot be used", ExitCode.MISTAKE
        own = (first_line(self.lost), self.lost.exit_code) if self.lost else None
        found = [(rank, *lost) for rank, lost in enumerate(dist.gather_objects(own)) if lost]
        words = [f"rank {rank}: {lost}" for rank, lost, _ in found]
        more = f"; and {len(words) - REPORTED} more" if len(words) > REPORTED else ""
        return "; ".join(words[:REPORTED]) + more, min(code for *_, code in found)

    def list_faults(self, samples_seen: int) -> None:
        """Record the images replaced since the last call; all ranks must call. Too many of them end the data."""
        self.quarantine.add(self.loader.faults, samples_seen)
        self.loader.faults.clear()
        self.lost = self.quarantine.excess or self.lost

    def skip(self, anomaly: Anomaly) -> None:
        """Leave a batch out from the next restart on; all ranks must call, and raise if that makes too many."""
        self.skipped.add(anomaly, self.global_batch, self._sampler, self._mixture)
