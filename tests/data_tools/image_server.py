"""A web server of images on loopback, with every fault that a link in a web-scale table may have.

The path names the fault and the image, as in /slow/17.jpg. A transient fault affects only the first request of a path.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

MOVED = "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n"
TARGETS = {
    "moved": "/ok/{}",
    "loop": "/loop/{}",
    "private": "http://10.1.2.3/{}",
    "metadata": "http://169.254.169.254/{}",
    "decimal": "http://2130706433/{}",
    "file": "file:///etc/passwd?{}",
}
STATUS = {"404": "404 Not Found", "410": "410 Gone", "500": "500 Internal Server Error"}
HEADERS = {
    "noai": "X-Robots-Tag: noai\r\n",
    "others": "X-Robots-Tag: otherbot: noai, noindex\r\n",
    "ours": "X-Robots-Tag: otherbot: nofollow, mvlm: noimageai\r\n",
    "both": "X-Robots-Tag: nofollow\r\nX-Robots-Tag: unavailable_after: 1 Jan 2030, NoImageIndex\r\n",
    "tdm": "TDM-Reservation: 1\r\n",
}


class ImageServer:
    """Serves `image(number)`.

    `seen` counts requests by path; `most` has the largest number of simultaneous requests by host, and `most_at_once`
    that of all hosts together.
    """

    def __init__(self, image: Callable[[int], bytes]) -> None:
        self._image = image
        self.seen: Counter[str] = Counter()
        self._running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.most_at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                host = ""
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    if header.lower().startswith(b"host:"):
                        host = header[5:].strip().decode().partition(":")[0]
                path = line.split()[1].decode()
                self.seen[path] += 1
                self._running[host] += 1
                self.most[host] = max(self.most[host], self._running[host])
                self.most_at_once = max(self.most_at_once, self._running.total())
                try:
                    keep_open = await self._answer(path, writer)
                finally:
                    self._running[host] -= 1
                if not keep_open:
                    break
        except (ConnectionError, IndexError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether the connection may serve another."""
        _, fault, name = path.split("/", 2)
        first = self.seen[path] == 1
        if fault in TARGETS:
            writer.write(MOVED.format(TARGETS[fault].format(name)).encode())
            return True
        if fault in STATUS:
            writer.write(f"HTTP/1.1 {STATUS[fault]}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        if fault == "later" and first:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        if (fault == "busy" and first) or fault == "away":
            seconds = 1 if fault == "busy" else 3600
            writer.write(f"HTTP/1.1 429 Slow Down\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        if fault == "flaky" and first:
            writer.write(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n")
            return True
        if fault == "zone":
            when = b"Tue, 15 Nov 1994 12:45:26 +99999999999999999999"
            writer.write(b"HTTP/1.1 404 Not Found\r\nRetry-After: %b\r\nContent-Length: 0\r\n\r\n" % when)
            return True
        if fault == "hang" or (fault == "stuck" and first):
            await asyncio.sleep(600)
        if fault == "garbage":
            writer.write(b"220 ftp.example.com\r\n\r\n")
            return False
        body = b"<html>gone</html>" if fault == "html" else self._image(int(name.partition(".")[0]))
        if fault == "bomb":
            body = gzip.compress(bytes(4_000_000))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return True
        if fault == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(body * 10)
                await writer.drain()
        length = {"short": len(body) + 100, "long": len(body) // 2, "huge": 10**12}.get(fault, len(body))
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{HEADERS.get(fault, '')}\r\n".encode()
        if fault == "reset" or (fault == "dropped" and first):
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            # Lingering for zero seconds makes closing send a reset.
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault in ("slow", "drip"):
            writer.write(head)
            pieces, pause = (4, 0.05) if fault == "slow" else (1000, 0.2)
            size = math.ceil(len(body) / pieces)
            for start in range(0, len(body), size):
                await asyncio.sleep(pause)
                writer.write(body[start : start + size])
                await writer.drain()
            return True
        if fault == "late":
            await asyncio.sleep(0.05)
        writer.write(head + body)
        return fault not in ("short", "huge")


@contextmanager
def serving(image: Callable[[int], bytes], encrypts: ssl.SSLContext | None = None) -> Iterator[tuple[ImageServer, int]]:
    """Serve from a thread of this process; yield the server and its port, the same on every loopback address."""
    server = ImageServer(image)
    started: Future[tuple[int, Callable[[], None]]] = Future()

    async def run() -> None:
        listener = await asyncio.start_server(server.serve, "0.0.0.0", 0, ssl=encrypts)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        started.set_result((listener.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stopped.set)))
        await stopped.wait()

    thread = Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    port, stop = started.result()
    try:
        yield server, port
    finally:
        stop()
        thread.join()


async def _main(folder: Path, port: int) -> None:
    images = [path.read_bytes() for path in sorted(folder.iterdir())]
    server = ImageServer(lambda number: images[number % len(images)])
    listener = await asyncio.start_server(server.serve, "0.0.0.0", port, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0))
