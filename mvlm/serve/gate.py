"""One model pass at a time, and a bounded number of requests that wait for theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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

    def enter(self) -> Place | None:
        """A place, or None where all are taken."""
        if not self._free:
            return None
        self._free -= 1
        return Place(self)

    async def pass_through(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread when its turn has come; the next waits until it has ended."""
        async with self._turn:
            return await run_in_threadpool(work)

    def leave(self) -> None:
        self._free += 1


class Place:
    """Left once: when the answer is there, not when a slow reader has it."""

    def __init__(self, gate: Gate) -> None:
        self._gate: Gate | None = gate

    def leave(self) -> None:
        if self._gate:
            self._gate.leave()
        self._gate = None
