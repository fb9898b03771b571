"""How many requests run at a time, altogether and to one host, and which hosts asked for a pause."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from .failure import BUSY, Failure

LONGEST_PAUSE = 60.0
"""Seconds of pause that a host may ask for; if it asks for more, its links fail."""


class _Host:
    def __init__(self, requests: int) -> None:
        self.free = asyncio.Semaphore(requests)
        self.users = 0
        self.paused_until = 0.0


class Hosts:
    """Remembers only hosts that are in use or pausing: a table may name millions."""

    def __init__(self, connections: int, per_host: int) -> None:
        self._free, self._per_host = asyncio.Semaphore(connections), per_host
        self._hosts: dict[str, _Host] = {}

    @asynccontextmanager
    async def slot(self, name: str) -> AsyncIterator[None]:
        """Wait until a request to this host may run, and hold its place; raises `Failure` if that takes too long."""
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self._per_host)
        host.users += 1
        try:
            async with host.free:  # before `_free`, or requests waiting for a busy host would use up all places
                while (pause := host.paused_until - monotonic()) > 0:
                    if pause > LONGEST_PAUSE:
                        raise Failure(BUSY, f"for {pause:.0f} s")
                    await asyncio.sleep(pause)
                async with self._free:
                    yield
        finally:
            host.users -= 1
            if not host.users and host.paused_until <= monotonic():
                self._hosts.pop(name, None)

    def pause(self, name: str, seconds: float) -> None:
        """Make the next requests to a host, which must be in use, wait."""
        host = self._hosts[name]
        host.paused_until = max(host.paused_until, monotonic() + seconds)
