"""Which addresses may be connected to: a table of links is hostile, and must not reach into the local network.

The address itself is checked, at the moment of connecting to it. So neither the way it is written, nor what a name
resolved to earlier, nor a redirect can lead past the check.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from .failure import NOT_PUBLIC, Failure

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last 32 bits are an IPv4 address (RFC 6052)."""

LOOKUPS = 64
"""Names resolved at a time: each lookup holds a thread, for seconds if a name server does not answer."""

Allowed = Callable[[str], bool]


def allowed_addresses(allow_loopback: bool) -> Allowed:
    """A test whether an address may be connected to: only public ones and, on request, this machine's own."""

    def allowed(text: str) -> bool:
        try:
            address = _inner(ipaddress.ip_address(text))
        except ValueError:
            return False
        return (address.is_global and not address.is_multicast) or (allow_loopback and address.is_loopback)

    return allowed


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that a gateway would turn an IPv6 one into, or else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def socket_factory(allowed: Allowed) -> Callable[[tuple], socket.socket]:  # type: ignore[type-arg]
    """What aiohttp makes sockets with; it connects each to the address that it passes here, and to no other."""

    def make(info: tuple) -> socket.socket:  # type: ignore[type-arg]
        family, kind, protocol, _, (address, *_) = info
        if not allowed(address):
            raise Failure(NOT_PUBLIC, address)
        return socket.socket(family, kind, protocol)

    return make


class Resolver(AbstractResolver):
    """Resolves names in threads of its own, and gives only addresses that may be connected to."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="lookup")

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        """Raises `Failure` if none of a name's addresses may be connected to, `OSError` if it has none."""
        infos = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port, family)
        found = [(kind, address[0]) for kind, _, _, _, address in infos]
        public = [(kind, str(address)) for kind, address in found if self._allowed(str(address))]
        if not public:
            raise Failure(NOT_PUBLIC, f"{host} is {found[0][1]}")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in public
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: int) -> list[tuple]:  # type: ignore[type-arg]
    return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
