"""One model pass at a time, and a limit on the requests that wait for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

WAITING = 8
"""Requests that may wait besides the one being answered; each may hold a picture in memory."""

T = TypeVar("T")


class Gate:
    """Places for requests, and turns at the model for those that have a place."""

    def __init__(self, waiting: int = WAITING) -> None:
        self._free = waiting + 1
        self._turn = asyncio.Lock()

    def enter(self) -> ExitStack | None:
        """A place, to be closed when the answer is ready, not when a slow client has read it; None if all are taken."""
        if not self._free:
            return None
        self._free -= 1
        place = ExitStack()
        place.callback(self._leave)
        return place

    async def pass_through(self, work: Callable[[], T]) -> T:
        """The result of `work`, run in a thread when its turn comes; the next waits until it has finished."""
        async with self._turn:
            return await run_in_threadpool(work)

    def _leave(self) -> None:
        self._free += 1
