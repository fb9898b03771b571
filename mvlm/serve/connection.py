"""Connections with limits: on their number, on the number per client, and on the time to wait for a request."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 200
PER_CLIENT = 32
"""Connections from one address. A browser opens six; the rest are for others who share the address."""

HEADERS_S = 10
"""For a request's headers to arrive, counted from the start of the connection or from the previous answer."""


class BoundedConnection(H11Protocol):
    """uvicorn's HTTP/1.1, which on its own would wait for headers for ever.

    When all connections are taken, a new one replaces the one that has been waited for longest. So a client
    keeps its place unless, before its request arrives, newer connections and those being answered fill all others.
    """

    _since = 0.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()
        everybody = cast("set[BoundedConnection]", self.connections)
        host = self.client[0] if self.client else ""
        if not is_shared(host):
            _make_room([one for one in everybody if one.client and one.client[0] == host], PER_CLIENT)
        _make_room(list(everybody), CONNECTIONS)

    def handle_events(self) -> None:
        super().handle_events()
        if self._is_answering() and self._deadline:
            self._deadline.cancel()

    def on_response_complete(self) -> None:
        self._wait_for_headers()
        super().on_response_complete()  # and takes the next request, if it has already arrived

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_headers(self) -> None:
        self._since = self.loop.time()
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEADERS_S, self._give_up, self.transport.get_write_buffer_size())

    def _give_up(self, unread: int) -> None:
        """Hang up, unless the previous answer is still being read."""
        left = self.transport.get_write_buffer_size()
        if 0 < left < unread:
            self._deadline = self.loop.call_later(HEADERS_S, self._give_up, left)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        self.connections.discard(self)
        self.transport.abort()  # closing would wait until everything is read


def is_shared(host: str) -> bool:
    """Whether many clients may share an address: behind a proxy or an ssh tunnel, all come from this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _make_room(connections: list[BoundedConnection], most: int) -> None:
    """If there are more than `most`, hang up the one waited for longest, which may be the newest."""
    if len(connections) > most:
        waiting = [one for one in connections if not one._is_answering()]
        min(waiting, key=lambda one: one._since)._hang_up()
