"""Idle connections keep nobody out and are closed after a while."""

import contextlib
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from starlette.responses import Response

from mvlm.serve import connection
from mvlm.serve.connection import CONNECTIONS, BoundedConnection

HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
BIG = 30_000_000


async def app(scope, receive, send):
    await Response(bytes(BIG) if scope["path"] == "/big" else b"here")(scope, receive, send)


@pytest.fixture
def port():
    """The port of a server in this process whose app answers at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, lifespan="off", ws="none", log_level="critical", http=BoundedConnection, backlog=200
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def is_open(slow):
    """Whether the server still holds the connection; an answer may have arrived."""
    slow.settimeout(0.01)
    try:
        return slow.recv(1000) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def test_hundreds_of_unfinished_requests_keep_nobody_out(served, client):
    """On the real server, from an address that many may share; nobody has to wait until the idle ones time out."""
    host, port = httpx.URL(served[1]).host, httpx.URL(served[1]).port
    with contextlib.ExitStack() as held:
        slow = [held.enter_context(socket.create_connection((host, port), timeout=60)) for _ in range(2 * CONNECTIONS)]
        for each in slow:
            with contextlib.suppress(ConnectionError):
                each.sendall(HALF)
        for _ in range(3):
            assert httpx.get(f"{served[1]}/health", timeout=60).json()["status"] == "ok"
        assert sum(map(is_open, slow)) < CONNECTIONS
    assert client.post("/api/view", json={"picture": {"sample": 0}}).status_code == 200


@pytest.mark.parametrize("start", [b"", HALF, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"])
def test_sending_bytes_slowly_gains_no_time(port, monkeypatch, start):
    """Neither while the headers are incomplete nor, with a body that nobody reads, after the answer."""
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(start)
        deadline = time.monotonic() + 60
        with contextlib.suppress(ConnectionError):
            while slow.sendall(b"x" * bool(start)) is None and is_open(slow):
                assert time.monotonic() < deadline
                time.sleep(0.02)


def test_a_slow_reader_gets_everything_and_one_that_does_not_read_is_dropped(port, monkeypatch):
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    ask = b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as slow,
        socket.create_connection(("127.0.0.1", port), timeout=60) as idle,
    ):
        slow.sendall(ask)
        idle.sendall(ask)
        got = 0
        with contextlib.suppress(ConnectionError):
            while got < BIG and (part := slow.recv(1 << 20)):
                got += len(part)
                time.sleep(0.03)
        assert got >= BIG
        rest = 0
        with contextlib.suppress(ConnectionError):
            while part := idle.recv(1 << 20):
                rest += len(part)
        assert rest < BIG


def test_a_client_has_a_limited_number_of_connections(port, monkeypatch):
    monkeypatch.setattr(connection, "PER_CLIENT", 3)
    monkeypatch.setattr(connection, "is_shared", lambda host: host == "127.0.0.1")
    with contextlib.ExitStack() as held:

        def connected(host):
            slow = held.enter_context(socket.create_connection(("127.0.0.1", port), 60, (host, 0)))
            slow.sendall(HALF)
            return slow

        shared = [connected("127.0.0.1") for _ in range(5)]
        one, other = [connected("127.0.0.2") for _ in range(5)], connected("127.0.0.3")
        one[-1].sendall(b"1\r\n\r\n")
        one[-1].settimeout(60)
        assert b"200 OK" in one[-1].recv(1000)
        assert [is_open(each) for each in one[:-1]] == [False, False, True, True]
        assert all(map(is_open, [*shared, other]))


@pytest.mark.parametrize(
    ("host", "shared"), [("127.0.0.1", True), ("::1", True), ("10.0.0.7", False), ("fd00::1", False), ("", False)]
)
def test_the_loopback_address_may_be_shared_by_many(host, shared):
    assert connection.is_shared(host) == shared
