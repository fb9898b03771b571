"""Downloading ahead of whoever uses the images, in the order of the links, within bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

from .client import Client, HeldMemory, Limits

T = TypeVar("T")
R = TypeVar("R")

MOST_ROWS = 4096
MOST_BYTES = 256_000_000
"""Limits of what is held for links whose turn has not come. From half of these bytes on, no further download begins."""

WAITING = 4
"""Links under way per connection, so that some proceed while others wait for a busy host or between attempts."""

CHUNK_ITEMS = 32
CHUNK_BYTES = 4_000_000
"""Results pass between threads in chunks, which end at whichever comes first."""

Work = Callable[[Client, T, HeldMemory], Awaitable[R]]


def prefetched(items: Iterable[T], work: Work[T, R], limits: Limits, most_bytes: int = MOST_BYTES) -> Iterator[R]:
    """Yield `await work(client, item, memory)` for each item in order; several run at a time in another thread.

    `work` must handle its own failures: an exception from it, or from `items`, is raised here and ends everything.
    """
    window: _Window[T, R] = _Window(items, work, limits, most_bytes)
    ready: Future[asyncio.AbstractEventLoop] = Future()
    thread = Thread(target=lambda: asyncio.run(window.run(ready)), name="download", daemon=True)
    thread.start()
    loop = ready.result()
    try:
        while results := asyncio.run_coroutine_threadsafe(window.take(), loop).result():
            yield from results
    finally:
        loop.call_soon_threadsafe(window.stop)
        thread.join()


class _Window(Generic[T, R]):
    """The links under way or done whose results have not been taken yet."""

    def __init__(self, items: Iterable[T], work: Work[T, R], limits: Limits, most_bytes: int) -> None:
        self._items, self._work, self._limits, self._most_bytes = items, work, limits, most_bytes
        self._window: deque[tuple[asyncio.Task[R], _Held]] = deque()
        self._under_way = 0
        self.first = 0  # number of the window's first item
        self.held = 0  # bytes

    async def run(self, ready: Future[asyncio.AbstractEventLoop]) -> None:
        self._changed, self._stopped = asyncio.Event(), asyncio.Event()
        self._filling = asyncio.create_task(self._fill())
        ready.set_result(asyncio.get_running_loop())
        await self._stopped.wait()
        tasks = [self._filling, *(task for task, _ in self._window)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        self._stopped.set()

    async def _fill(self) -> None:
        try:
            async with Client(self._limits) as client:
                for number, item in enumerate(self._items):
                    while self._full():
                        await self.change()
                    held = _Held(self, number)
                    self._under_way += 1
                    self._window.append((asyncio.create_task(self._run(client, item, held)), held))
                    self._tell()
                    await asyncio.sleep(0)  # let the downloads run first
                while self._window:
                    await self.change()
        finally:
            self._tell()

    def _full(self) -> bool:
        return (
            self._under_way >= WAITING * self._limits.connections
            or len(self._window) >= MOST_ROWS
            or not self.has_room(self.first + len(self._window))
        )

    async def _run(self, client: Client, item: T, held: _Held) -> R:
        try:
            return await self._work(client, item, held)
        finally:
            self._under_way -= 1
            self._tell()

    async def take(self) -> list[R]:
        """Wait for the next result, and return it with those after it that are ready; none at the end."""
        while not self._window:
            if self._filling.done():
                self._filling.result()
                return []
            await self.change()
        await asyncio.wait([self._window[0][0]])
        results: list[R] = []
        size = 0
        while self._window and self._window[0][0].done() and len(results) < CHUNK_ITEMS and size < CHUNK_BYTES:
            task, held = self._window.popleft()
            results.append(task.result())
            size += held.size
            held.reset()
            self.first += 1
        self._tell()
        return results

    def _tell(self) -> None:
        self._changed.set()
        self._changed.clear()

    async def change(self) -> None:
        """Wait until a download ends or begins, or results are taken."""
        await self._changed.wait()

    def has_room(self, number: int) -> bool:
        """Whether another download may begin. The first item's always may, since everything waits for it."""
        return 2 * self.held < self._most_bytes or number == self.first

    def overfull(self, number: int) -> bool:
        return self.held > self._most_bytes and number != self.first


class _Held:
    """What one item holds: a `HeldMemory`."""

    def __init__(self, window: _Window[T, R], number: int) -> None:
        self._window, self._number, self.size = window, number, 0

    def add(self, size: int) -> bool:
        self.size += size
        self._window.held += size
        return not self._window.overfull(self._number)

    def reset(self) -> None:
        self._window.held -= self.size
        self.size = 0

    async def room(self) -> None:
        while not self._window.has_room(self._number):
            await self._window.change()
