"""The training stream: global batches in a fixed order, whatever the ranks, threads and micro-batches.

Global batch k of a run is positions kG .. (k+1)G. With `world` ranks, micro-batch m of rank r covers the
`micro_batch` positions from kG + (m * world + r) * micro_batch on, so one round over the ranks is consecutive.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from mvlm.batch import Batch
from mvlm.data.collate import Sample, pin
from mvlm.data.dataset import PairDataset
from mvlm.data.order import Order
from mvlm.errors import UserError


class Loader:
    """Iterates over steps without end; each item is the list of this rank's micro-batches of one step.

    Images are decoded by threads, which the decoders leave free of the interpreter's lock; at most
    `prefetch` micro-batches exist beside those handed out. An exception in a thread is raised to the
    consumer at the step it belongs to. Use it as a context manager, or call `close`.

    Args:
        order: position -> row.
        global_batch, micro_batch: pairs a step over all ranks, and a forward pass of one rank.
        start_position: samples already seen, from which the stream goes on.
        skip: positions at which a global batch begins that is left out.
        workers: decoding threads; 0 = decode when asked, in the consumer's thread.
        prefetch: micro-batches prepared ahead.
        pin: hand out page-locked tensors.

    Attributes:
        wait_seconds: how long the consumer has waited for data so far.
        position: where the global batch that was handed out last begins.

    Raises:
        UserError: the global batch does not divide into micro-batches.
    """

    def __init__(
        self,
        dataset: PairDataset,
        order: Order,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        start_position: int = 0,
        skip: Collection[int] = (),
        workers: int = 2,
        prefetch: int = 2,
        pin: bool = False,
    ):
        if micro_batch < 1 or global_batch % (micro_batch * world):
            raise UserError(
                f"train.global_batch = {global_batch} does not divide into micro-batches of {micro_batch} on {world} "
                "ranks: choose train.micro_batch so that micro_batch x ranks divides it."
            )
        self.dataset = dataset
        self.order = order
        self.accumulation = global_batch // (micro_batch * world)
        self.wait_seconds = 0.0
        self.position = start_position
        self._micro_batch = micro_batch
        self._handed_out = _starts(start_position, global_batch, skip)
        own = [(m * world + rank) * micro_batch for m in range(self.accumulation)]
        steps = _starts(start_position, global_batch, skip)
        self._micro_batches = (start + offset for start in steps for offset in own)
        self._prefetch = prefetch
        self._pin = pin
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="mvlm-data") if workers else None
        self._pending: deque[Future[Batch]] = deque()
        self._closed = False

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if self._closed:
            raise StopIteration
        began = time.perf_counter()
        self.position = next(self._handed_out)
        try:
            return [self._take() for _ in range(self.accumulation)]
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Drop what was prepared and end the threads; iterating on stops."""
        self._closed = True
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self) -> Batch:
        """The next micro-batch, with the ones after it set going."""
        if self._pool is None:
            return self._finish([self.dataset.sample(position, row) for position, row in self._next_pairs()])
        while len(self._pending) < self._prefetch:
            self._pending.append(self._start(self._pool))
        ready = self._pending.popleft().result()
        self._pending.append(self._start(self._pool))
        return ready

    def _start(self, pool: ThreadPoolExecutor) -> Future[Batch]:
        samples = [pool.submit(self.dataset.sample, position, row) for position, row in self._next_pairs()]
        # The pool is first in, first out: when this runs, all it waits for is done or running, so it cannot hang.
        return pool.submit(lambda: self._finish([sample.result() for sample in samples]))

    def _finish(self, samples: list[Sample]) -> Batch:
        batch = self.dataset.collate(samples)
        return pin(batch) if self._pin else batch

    def _next_pairs(self) -> list[tuple[int, int]]:
        """Position and row of each pair of the next micro-batch."""
        first = next(self._micro_batches)
        positions = np.arange(first, first + self._micro_batch)
        return list(zip(positions.tolist(), self.order(positions).tolist(), strict=True))


def _starts(position: int, global_batch: int, skip: Collection[int]) -> Iterator[int]:
    """Where the global batches from `position` on begin, those in `skip` left out."""
    return (start for start in itertools.count(position, global_batch) if start not in skip)
