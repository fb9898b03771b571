"""An ordered parallel map over the processes of this machine, with bounded memory."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Generic, TypeVar

from mvlm.errors import UserError

from .chunks import HELD, RETRIES, apply, chunks, in_order

T = TypeVar("T")
R = TypeVar("R")

LONGEST_FOLDER = 75
"""Bytes of the longest temporary folder that leaves room for the fork server's socket: Unix takes paths of 107."""


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int], workers: int
) -> Iterator[tuple[T, R]]:
    """Yield `(item, function(item))` in the order of `items`, whatever the number of processes.

    At most three chunks per worker are held; a single worker is this process itself. `size` gives an item's bytes.
    A chunk on which a worker dies is tried again.

    Raises:
        UserError: worker processes died on the same chunk again and again.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    pool = _Pool(function, workers)
    try:
        yield from in_order(chunks(items, size), pool.submit, pool.result, HELD * workers)
    finally:
        pool.close()


def _begin() -> None:
    """Set up a worker: it leaves Ctrl-C to its parent, and ends when its parent does, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os._exit(1)


class _Pool(Generic[T, R]):
    """Worker processes that are replaced when one dies, which breaks all futures of its executor."""

    def __init__(self, function: Callable[[T], R], workers: int) -> None:
        self._function, self._workers = function, workers
        self._executor = self._start(workers)

    def _start(self, workers: int) -> ProcessPoolExecutor:
        # Forking this process while a progress bar's thread runs could deadlock the child.
        fits = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER
        return ProcessPoolExecutor(workers, get_context("forkserver" if fits else "spawn"), initializer=_begin)

    def submit(self, chunk: list[T]) -> Future[list[R]]:
        try:
            return self._executor.submit(apply, self._function, chunk)
        except BrokenProcessPool:
            self.close()
            self._executor = self._start(self._workers)
            return self._executor.submit(apply, self._function, chunk)

    def result(self, chunk: list[T], future: Future[list[R]]) -> list[R]:
        try:
            return future.result()
        except (BrokenProcessPool, CancelledError):
            return self._alone(chunk)

    def _alone(self, chunk: list[T]) -> list[R]:
        """Run a chunk in processes of its own, so that it is not blamed for a deadly item in another chunk."""
        for _ in range(RETRIES):
            executor = self._start(1)
            try:
                return executor.submit(apply, self._function, chunk).result()
            except BrokenProcessPool:
                continue
            finally:
                executor.shutdown(cancel_futures=True)
        raise UserError(
            f"A worker process died at or near {chunk[0]}, probably of too little memory: give fewer --workers."
        )

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)
