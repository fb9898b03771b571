"""The training stream: global batches in a fixed order, whatever the ranks, threads and micro-batches.

Global batch k of a run is positions kG .. (k+1)G. With `world` ranks, micro-batch m of rank r covers the
`micro_batch` positions from kG + (m * world + r) * micro_batch on, so one round over the ranks is consecutive.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor

from mvlm.data.loading.buffers import Buffer, Kept, Pinned, Shared
from mvlm.data.loading.collate import collate as collate_samples
from mvlm.data.loading.collate import pin
from mvlm.data.loading.device import DeviceCopies
from mvlm.data.loading.prefetch import Prefetcher
from mvlm.data.loading.processes import Processes
from mvlm.data.loading.sampler import Sampler
from mvlm.data.samples.dataset import Draw, Fault, ShardDataset
from mvlm.errors import UserError

CHUNK = 16
"""Samples prepared at a time: enough to make handing them over cheap, few enough to keep all workers busy."""

DRAWN = 1024
"""Positions whose rows are computed at a time."""


class Loader:
    """Iterates over steps without end; each item is the list of this rank's micro-batches of one step.

    Images are decoded by threads, since the decoders release the GIL, or by processes; at most `prefetch`
    micro-batches exist besides those handed out and, once asked for, those of the next step. An exception in one is
    raised to the consumer at the step it belongs to. Use it as a context manager, or call `close`.

    Args:
        sampler: position -> row and occurrence.
        global_batch, micro_batch: pairs per step over all ranks, and per forward pass of one rank.
        start_position: samples already seen, from which the stream continues.
        skip: the first positions of global batches to leave out.
        workers: decoding threads or processes; 0 = decode when asked, one after another.
        worker_mode: processes write into shared memory and load neither torch nor the model.
        prefetch: micro-batches prepared ahead.
        pin: hand out page-locked tensors.
        copies: hand out tensors on a device, to which they are copied as soon as they are asked for.
        prefetcher: for shards at URLs; it is told where the stream is, and closed with it.
        collate: makes a batch of samples and their images uint8 [V, B, 3, H, W]; None = one for our model.

    Attributes:
        wait_seconds: how long the consumer has waited for data so far.
        position: where the global batch handed out last begins.
        faults: the rows replaced in what has been handed out so far.

    Raises:
        UserError: the global batch does not divide into micro-batches.
    """

    def __init__(
        self,
        dataset: ShardDataset[Any],
        sampler: Sampler,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        start_position: int = 0,
        skip: Collection[int] = (),
        workers: int = 2,
        worker_mode: Literal["threads", "processes"] = "threads",
        prefetch: int = 2,
        pin: bool = False,
        copies: DeviceCopies | None = None,
        prefetcher: Prefetcher | None = None,
        collate: Callable[[Sequence[Any], Tensor], Any] | None = None,
    ):
        if micro_batch < 1 or global_batch % (micro_batch * world):
            raise UserError(
                f"train.global_batch = {global_batch} does not divide into micro-batches of {micro_batch} on {world} "
                "ranks: choose train.micro_batch so that micro_batch x ranks divides it."
            )
        self.dataset = dataset
        self.accumulation = global_batch // (micro_batch * world)
        self.wait_seconds = 0.0
        self.position = start_position
        self.faults: list[Fault] = []
        self._handed_out = _starts(start_position, global_batch, skip)
        self._upcoming = next(self._handed_out)
        own = [(m * world + rank) * micro_batch for m in range(self.accumulation)]
        steps = _starts(start_position, global_batch, skip)
        self._micro_batches = _drawn(sampler, (start + offset for start in steps for offset in own), micro_batch)
        self._prefetch = prefetch
        self._pin, self._copies = pin, copies
        self._collate = collate or partial(collate_samples, captions=dataset.captions)
        self._prefetcher = prefetcher
        views, channels, height, width = dataset.image_shape
        self._processes = Processes(dataset) if workers and worker_mode == "processes" else None
        kind = Shared if self._processes else Pinned if pin else Kept
        self._buffers = kind((views, micro_batch, channels, height, width))
        self._chunk = max(1, min(CHUNK, micro_batch // max(workers, 1)))
        self._pool = ThreadPoolExecutor(workers, "mvlm-data") if workers else None
        self._finisher = ThreadPoolExecutor(1, "mvlm-data-collate")
        self._pending: deque[Future[tuple[Any, list[Fault]]]] = deque()
        self._next: list[tuple[Any, list[Fault]]] = []  # of the step to be handed out
        self._closed = False

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        if self._closed:
            raise StopIteration
        try:
            self.ready()
        except BaseException:
            self.close()
            raise
        self.position, self._upcoming = self._upcoming, next(self._handed_out)
        step, self._next = self._next, []
        for _, faults in step:
            self.faults += faults
        return [self._copies.finish(batch) for batch, _ in step] if self._copies else [batch for batch, _ in step]

    def ready(self, seconds: float | None = None) -> bool:
        """Wait for the next step's micro-batches, for at most `seconds` if given; return whether they are there.

        Raises whatever went wrong with them.
        """
        began = time.perf_counter()
        if self._prefetcher is not None:
            self._prefetcher.at(self._upcoming)
        try:
            while len(self._next) < self.accumulation:
                left = None if seconds is None else max(0.0, began + seconds - time.perf_counter())
                if not self._take(left):
                    return False
            return True
        finally:
            self.wait_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Drop what was prepared and end the threads and processes; iteration then stops."""
        self._closed = True
        if self._prefetcher is not None:
            self._prefetcher.close()  # first, since a thread may be waiting for an unreachable store
        self._pending.clear()
        for pool in (self._pool, self._finisher):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        for helper in (self._processes, self._buffers):
            if helper is not None:
                helper.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, seconds: float | None) -> bool:
        """Take the next micro-batch, waiting at most `seconds`, and start those after it; return whether it came."""
        while len(self._pending) < (self._prefetch if self._pool else 1):
            self._pending.append(self._start())
        if not wait([self._pending[0]], seconds).done:
            return False
        batch, faults = self._pending[0].result()  # if this raises, it stays pending and will raise again
        self._next.append((self._copies.begin(batch) if self._copies else batch, faults))
        self._pending.popleft()
        if self._processes is not None:
            self._processes.may_start = True
        if self._pool:
            self._pending.append(self._start())
        return True

    def _start(self) -> Future[tuple[Any, list[Fault]]]:
        buffer, draws = self._buffers.take(), next(self._micro_batches)
        if self._pool is None:
            return self._finisher.submit(lambda: self._finish(buffer, self._prepare(buffer, draws, 0)))
        pool = self._pool
        starts = range(0, len(draws), self._chunk)
        chunks = [pool.submit(self._prepare, buffer, draws[first : first + self._chunk], first) for first in starts]
        return self._finisher.submit(lambda: self._finish(buffer, [s for chunk in chunks for s in chunk.result()]))

    def _prepare(self, buffer: Buffer, draws: list[Draw], first: int) -> list[Any]:
        """Prepare a part of a micro-batch, from its sample `first` on."""
        if self._processes is not None:
            return self._processes.prepare(draws, buffer, first)
        return self.dataset.samples(draws, buffer.images_VBCHW[:, first : first + len(draws)])

    def _finish(self, buffer: Buffer, samples: list[Any]) -> tuple[Any, list[Fault]]:
        batch = self._collate(samples, buffer.lend())
        return pin(batch) if self._pin else batch, [fault for sample in samples for fault in sample.faults]


def _drawn(sampler: Sampler, firsts: Iterator[int], micro_batch: int) -> Iterator[list[Draw]]:
    """The draws of each micro-batch, given its first position; computed for many at once, which saves calls."""
    while several := list(itertools.islice(firsts, max(1, DRAWN // micro_batch))):
        positions = np.add.outer(several, np.arange(micro_batch)).ravel()
        rows, occurrences = sampler(positions)
        drawn = list(zip(positions.tolist(), rows.tolist(), occurrences.tolist(), strict=True))
        yield from (drawn[at : at + micro_batch] for at in range(0, len(drawn), micro_batch))


def _starts(position: int, global_batch: int, skip: Collection[int]) -> Iterator[int]:
    """Where the global batches from `position` on begin, without those in `skip`."""
    return (start for start in itertools.count(position, global_batch) if start not in skip)
