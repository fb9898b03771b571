"""Downloading one image: bounded in time, size, redirects and attempts, from public addresses, if the site lets us."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol, Self

import aiohttp
from yarl import URL

from . import failure as why
from .addresses import Resolver, allowed_addresses, socket_factory
from .failure import Failure
from .hosts import LONGEST_PAUSE, Hosts
from .optout import TOKEN, opts_out

MOST_REDIRECTS = 5
REDIRECT = frozenset((301, 302, 303, 307, 308))
TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers after which another attempt may help."""

CONNECT_SECONDS = 10.0
READ_SECONDS = 10.0
"""Time limits for connecting, TLS included, and between two pieces of an answer."""

FIRST_BACKOFF = 0.5
"""Seconds before the second attempt, doubled before each further one; the actual pause is half to all of that."""

KEEP_ALIVE = 1.0
"""Seconds for which a connection is kept for another image: most hosts in a web-scale table occur only once."""

CACHE_NAMES = 300  # seconds
HEADERS = {"User-Agent": f"Mozilla/5.0 (compatible; {TOKEN})", "Accept": "image/*,*/*;q=0.5"}


@dataclass(frozen=True)
class Limits:
    """`timeout` is in seconds, from connecting to the last byte of a request; `max_bytes` limits an image."""

    connections: int = 256
    per_host: int = 8
    timeout: float = 30.0
    retries: int = 2
    max_bytes: int = 32_000_000
    allow_loopback: bool = False


class HeldMemory(Protocol):
    """Where a download accounts for the bytes that it holds."""

    def add(self, size: int) -> bool:
        """Count further bytes, and return whether there was room for them."""

    def reset(self) -> None:
        """Forget what was added."""

    async def room(self) -> None:
        """Wait until there is room for a download."""


class _NoRoom(Exception):
    """A download is given up for now: those needed sooner must never wait for its slot or its memory."""


class Client:
    """To be used within one event loop, as an asynchronous context."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._hosts = Hosts(limits.connections, limits.per_host)

    async def __aenter__(self) -> Self:
        allowed = allowed_addresses(self._limits.allow_loopback)
        connector = aiohttp.TCPConnector(
            limit=0,  # `Hosts` limits connections
            resolver=Resolver(allowed),
            socket_factory=socket_factory(allowed),
            ttl_dns_cache=CACHE_NAMES,
            keepalive_timeout=KEEP_ALIVE,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def fetch(self, link: str, memory: HeldMemory) -> bytes:
        """The bytes that `link` leads to, after as many attempts as needed; raises the last one's `Failure`."""
        backoff, left = FIRST_BACKOFF, self._limits.retries
        while True:
            try:
                return await self._follow(link, memory)
            except _NoRoom:
                memory.reset()
                await memory.room()
                continue
            except Failure as failure:
                memory.reset()
                if not failure.transient or not left:
                    raise
                await asyncio.sleep(max(failure.wait, backoff * random.uniform(0.5, 1)))
            backoff, left = 2 * backoff, left - 1

    async def _follow(self, link: str, memory: HeldMemory) -> bytes:
        try:
            url = URL(link)
            for _ in range(MOST_REDIRECTS + 1):
                if url.scheme not in ("http", "https") or not url.host:
                    raise Failure(why.NO_LINK, str(url)[:200])
                async with self._hosts.slot(url.host):
                    found = await self._request(url, memory)
                if isinstance(found, bytes):
                    return found
                url = found
        except (aiohttp.ClientError, OSError, ValueError) as error:  # the time-outs are among these
            raise _failure(error) from None
        raise Failure(why.REDIRECTS, str(url)[:200])

    async def _request(self, url: URL, memory: HeldMemory) -> bytes | URL:
        """The image at this URL, or the URL that it redirects to."""
        async with asyncio.timeout(self._limits.timeout), self._session.get(url, allow_redirects=False) as answer:
            if reason := opts_out(answer.headers):
                raise Failure(why.OPTED_OUT, reason)
            if answer.status in REDIRECT and "Location" in answer.headers:
                return url.join(URL(answer.headers["Location"]))
            if answer.status != 200:
                raise self._refusal(str(url.host), answer)
            if (answer.content_length or 0) > self._limits.max_bytes:
                raise Failure(why.TOO_LARGE, f"{answer.content_length:,} bytes")
            return await self._body(answer, memory)

    def _refusal(self, host: str, answer: aiohttp.ClientResponse) -> Failure:
        wait = _retry_after(answer.headers.get("Retry-After", ""))
        if wait:
            self._hosts.pause(host, wait)
        transient = answer.status in TRANSIENT and wait <= LONGEST_PAUSE
        return Failure(why.HTTP.format(answer.status), (answer.reason or "")[:100], transient, wait)

    async def _body(self, answer: aiohttp.ClientResponse, memory: HeldMemory) -> bytes:
        pieces, size = [], 0
        async for piece in answer.content.iter_any():
            size += len(piece)
            if size > self._limits.max_bytes:
                raise Failure(why.TOO_LARGE, f"more than {self._limits.max_bytes:,} bytes")
            pieces.append(piece)
            if not memory.add(len(piece)):
                raise _NoRoom
        return b"".join(pieces)


def _retry_after(value: str) -> float:
    """Seconds to wait; the header holds them or a date. 0 if it holds neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):  # no date, or one without a valid time zone
        return 0.0


def _failure(error: Exception) -> Failure:
    """The failure for an error of aiohttp or of a socket."""
    detail = str(error)[:200]
    if isinstance(error, TimeoutError):
        return Failure(why.TIMED_OUT, detail, transient=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return Failure(why.CERTIFICATE, detail)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        gone = getattr(error.os_error, "errno", None) in (socket.EAI_NONAME, socket.EAI_NODATA)
        return Failure(why.NO_HOST, detail, transient=not gone)
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failure(why.NO_CONNECTION, detail, transient=True)
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failure(why.CUT, detail, transient=True)
    if isinstance(error, aiohttp.ClientResponseError):
        # It may be a surplus of the connection's previous answer, so that another attempt may well succeed.
        return Failure(why.NO_HTTP, detail, transient=True)
    if isinstance(error, aiohttp.InvalidURL) or (isinstance(error, ValueError) and not isinstance(error, OSError)):
        return Failure(why.NO_LINK, detail)
    return Failure(why.LOST, detail, transient=True)
