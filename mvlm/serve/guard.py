"""Checks on every request: which page sends it, how large it is, and whether there is room for it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mvlm.serve.gate import Gate

PICTURE_LIMIT = 10_000_000
"""Bytes of an uploaded picture."""

BODY_LIMIT = PICTURE_LIMIT * 4 // 3 + 65_536
"""Bytes of a request: a picture in base64 and some sentences."""

PATIENCE_S = 30
"""For a request to arrive: a client that sends one byte a minute must not keep a place."""

RETRY_AFTER_S = 2

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Refusal(Exception):
    """A refused request: the status, and a sentence for the reader."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        self.response = JSONResponse({"error": sentence}, status, headers)


class RequestGuard:
    """ASGI middleware.

    Args:
        names: host names by which this machine is requested, besides its IP addresses. Any other name that resolves to
            it belongs to another site, whose page could read our answers (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, gate: Gate, names: Collection[str]) -> None:
        self.app, self.gate, self.names = app, gate, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        send, place = _with_headers(send), None
        try:
            if not self._is_ours(headers.get("host", "")):
                raise Refusal(421, "This page has another name: open the address that `mvlm serve` printed.")
            if scope["method"] in ("GET", "HEAD"):
                return await self.app(scope, receive, send)
            place = self.gate.enter()
            if place is None:
                sentence = "Too many are asking at the moment: it will be your turn in a few seconds."
                raise Refusal(503, sentence, **{"retry-after": str(RETRY_AFTER_S)})
            body = await _read(headers, receive)
            await self.app(scope, _replay(body), _leaving(place, send))
        except Refusal as refused:
            await refused.response(scope, receive, send)
        finally:
            if place:
                place.close()

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        try:
            ipaddress.ip_address(name.strip("[]"))
            return True
        except ValueError:
            return name.lower() in self.names


async def _read(headers: Headers, receive: Receive) -> bytes:
    """The whole body; one that is too large is refused before it is read, or as soon as that is known."""
    sentence = f"That is too large: a picture may have at most {PICTURE_LIMIT // 1_000_000} MB."
    too_large = Refusal(413, sentence, connection="close")  # else the rest would still be received
    said = headers.get("content-length", "0")
    if not said.isdigit() or int(said) > BODY_LIMIT:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The request broke off: send it again.")
                body += message.get("body", b"")
                if len(body) > BODY_LIMIT:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        sentence = f"The request did not arrive within {PATIENCE_S} seconds: send it again."
        raise Refusal(408, sentence, connection="close") from None


def _replay(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _leaving(place: ExitStack, send: Send) -> Send:
    async def leaving(message: Message) -> None:
        place.close()
        await send(message)

    return leaving


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return with_headers
