"""One model pass at a time, and a bounded number of requests that wait for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

WAITING = 8
"""Requests beside the one that is being answered; each may hold a picture in memory."""

T = TypeVar("T")


class Gate:
    """Places for requests, and turns at the model for those that have one."""

    def __init__(self, waiting: int = WAITING) -> None:
        self._free = waiting + 1
        self._turn = asyncio.Lock()

    def enter(self) -> ExitStack | None:
        """A place, to be closed when the answer is there, not when a slow reader has it; None where all are taken."""
        if not self._free:
            return None
        self._free -= 1
        place = ExitStack()
        place.callback(self._leave)
        return place

    async def pass_through(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread when its turn has come; the next waits until it has ended."""
        async with self._turn:
            return await run_in_threadpool(work)

    def _leave(self) -> None:
        self._free += 1
