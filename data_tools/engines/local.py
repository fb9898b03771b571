"""An ordered parallel map over the processes of this machine, with bounded memory."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from mvlm.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

CHUNK_ITEMS = 32
CHUNK_BYTES = 4_000_000
"""A chunk of items travels to a worker together and ends at whichever comes first."""


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], workers: int, size: Callable[[T], int]
) -> Iterator[tuple[T, R]]:
    """Yield `(item, function(item))` in the order of `items`, whatever the number of processes.

    At most three chunks a worker are held; one worker means this very process. `size` gives an item's bytes.

    Raises:
        UserError: a worker process died.
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    # Forking this process while a progress bar's thread runs could deadlock the child.
    pool = ProcessPoolExecutor(
        workers, get_context("forkserver"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    waiting: deque[tuple[list[T], Future[list[R]]]] = deque()
    try:
        for chunk in _chunks(items, size):
            waiting.append((chunk, pool.submit(_apply, function, chunk)))
            if len(waiting) >= 3 * workers:
                yield from _results(*waiting.popleft())
        while waiting:
            yield from _results(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [function(item) for item in chunk]


def _results(chunk: list[T], future: Future[list[R]]) -> Iterator[tuple[T, R]]:
    try:
        results = future.result()
    except BrokenProcessPool:
        raise UserError(
            f"A worker process died at or near {chunk[0]}, probably of too little memory: give fewer --workers."
        ) from None
    return zip(chunk, results, strict=True)


def _chunks(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    chunk: list[T] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) >= CHUNK_ITEMS or total >= CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
