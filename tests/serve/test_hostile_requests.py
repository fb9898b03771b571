"""Requests that are malformed or malicious, and too many at once."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from PIL import Image

from mvlm.__main__ import main
from mvlm.serve import guard
from mvlm.serve.gate import WAITING, Gate
from tests import pictures
from tests.serve.process import start


def encode(data):
    return {"upload": base64.b64encode(data).decode()}


def noise():
    return pictures.encoded(Image.effect_noise((40, 30), 90), "PNG")


def bomb(side):
    """A PNG of a few hundred bytes that claims side x side pixels."""
    return pictures.png(side, side, colours=6, pixels=bytes(9999))


def refused(response, status):
    """The sentence with which a request was refused."""
    assert response.status_code == status, response.text
    (sentence,) = response.json().values()
    assert sentence.endswith(".") and "\n" not in sentence and "Traceback" not in sentence
    return sentence


HOSTILE = {
    "text": b"<html><script>alert(1)</script></html>",
    "nothing": b"",
    "cut": noise()[:-60],
    "bomb": bomb(60_000),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) show",
    "noise": os.urandom(5000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_upload_that_is_not_a_picture_is_refused_at_once(served, client, kind):
    before, began = psutil.Process(served[0].pid).memory_info().rss, time.monotonic()
    sentence = refused(client.post("/api/view", json={"picture": encode(HOSTILE[kind])}), 400)
    assert "This is not a picture that can be shown" in sentence
    assert time.monotonic() - began < 30
    assert psutil.Process(served[0].pid).memory_info().rss - before < 30e6


def test_a_good_upload_is_shown(client):
    answer = client.post("/api/view", json={"picture": encode(noise())})
    assert answer.status_code == 200 and answer.json()["picture"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("view", {"picture": {"upload": "no base64!"}}),
        ("view", {"picture": {"upload": "nö"}}),
        ("view", {"picture": {"sample": 99}}),
        ("view", {"picture": {"found": 10**9}}),
        ("view", {"picture": {}}),
        ("view", {"picture": {"sample": 0, "found": 0}}),
        ("search", {"sentence": "  "}),
        ("patches", {"picture": {"sample": 0}, "sentence": "x", "hidden": []}),
        ("patches", {"picture": {"sample": 0}, "sentence": "x", "hidden": [0, 1, 2, 3]}),
        ("words", {"picture": {"sample": 0}, "words": ["a"], "hidden": []}),
        ("words", {"picture": {"sample": 0}, "words": ["a"] * 1000, "hidden": [999]}),
        ("words", {"picture": {"sample": 0}, "words": ["x" * 1998, "a"], "hidden": [1]}),
        ("words", {"picture": {"sample": 0}, "words": [""], "hidden": [0]}),
    ],
)
def test_a_request_that_cannot_be_answered_gets_one_sentence(client, path, question):
    assert ": " in refused(client.post(f"/api/{path}", json=question), 400)


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"picture": {"sample": -1}},
        {"picture": {"sample": "0"}},
        {"picture": {"path": "/etc/passwd"}},
        {"picture": {"sample": 0}, "extra": 1},
        [],
        "x",
    ],
)
def test_a_malformed_request_gets_one_sentence(client, question):
    refused(client.post("/api/view", json=question), 422)


def test_a_long_sentence_is_refused_and_markup_is_harmless(client):
    refused(client.post("/api/search", json={"sentence": "x" * 2001}), 422)
    for words in (["a"] * 1001, ["x" * 1999, "a"]):
        question = {"picture": {"sample": 0}, "words": words, "hidden": [0]}
        assert "at most 2000 characters" in refused(client.post("/api/words", json=question), 422)
    hostile = "<script>alert(1)</script>\x00\u202e"
    answer = client.post("/api/words", json={"picture": {"sample": 0}, "words": [hostile], "hidden": [0]})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert client.post("/api/search", json={"sentence": hostile}).status_code == 200


def test_json_of_another_content_type_is_refused(client):
    """A form on another site may send text without asking, but not JSON."""
    content = json.dumps({"picture": {"sample": 0}})
    refused(client.post("/api/view", content=content, headers={"content-type": "text/plain"}), 422)
    refused(client.post("/api/view", content="{", headers={"content-type": "application/json"}), 422)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"picture": "\xff"}'])
def test_unreadable_json_gets_one_sentence(client, content):
    refused(client.post("/api/view", content=content, headers={"content-type": "application/json"}), 400)


def test_an_unknown_path_or_method_gets_one_sentence(client):
    refused(client.get("/nowhere"), 404)
    answer = client.get("/api/view")
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_an_empty_word_is_not_mistaken_for_one_beyond_the_models_length(client):
    for nothing in ("", " "):
        question = {"picture": {"sample": 0}, "words": ["a", nothing, "b"], "hidden": [1]}
        assert "has nothing that this model reads" in refused(client.post("/api/words", json=question), 400)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "a]b["])
def test_another_host_name_is_refused(client, host):
    refused(client.get("/health", headers={"host": host}), 421)
    refused(client.post("/api/view", json={}, headers={"host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000", "[::1]", "10.0.0.7:80"])
def test_own_names_and_addresses_are_accepted(client, host):
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_every_answer_has_the_security_policy(client):
    for response in (
        client.get("/"),
        client.get("/nowhere"),
        client.post("/api/view", json={}),
        client.get("/page.js"),
    ):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert "http://" not in page and "https://" not in page and " style=" not in page and "onclick" not in page
    scripts = [client.get(f"/{name}.js").text for name in ("page", "search", "draw")]
    assert all("use strict" in script and "innerHTML" not in script for script in scripts)
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
    assert client.get("/../../etc/passwd").status_code == 404


def raw(address, head):
    """A connection on which `head` has been sent."""
    parts = urlsplit(address)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
    connection.sendall(head.replace("\n", "\r\n").encode())
    return connection


POST = "POST /api/view HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"


def test_a_large_body_is_refused_before_it_is_read(served):
    with raw(served[1], f"{POST}Content-Length: 1000000000000\n\n") as connection:
        assert b" 413 " in connection.recv(100)
    before = psutil.Process(served[0].pid).memory_info().rss
    with raw(served[1], f"{POST}Transfer-Encoding: chunked\n\n") as connection:
        chunk, sent = b"100000\r\n" + bytes(1 << 20) + b"\r\n", 0
        with contextlib.suppress(OSError):  # it hangs up
            while sent < 2000:
                connection.sendall(chunk)
                sent += 1
    assert sent < 100
    assert psutil.Process(served[0].pid).memory_info().rss - before < 100e6


def test_requests_beyond_the_queue_are_asked_to_come_again(served, client):
    slow = [raw(served[1], f"{POST}Content-Length: 100\n\n{{") for _ in range(WAITING + 1)]
    deadline = time.monotonic() + 60
    while (response := client.post("/api/view", json={"picture": {"sample": 0}})).status_code == 200:
        assert time.monotonic() < deadline
        slow.append(raw(served[1], f"{POST}Content-Length: 100\n\n{{"))  # takes the place that became free meanwhile
    assert "your turn in a few seconds" in refused(response, 503)
    assert int(response.headers["retry-after"]) > 0
    assert client.get("/health").status_code == client.get("/").status_code == 200
    for connection in slow:
        connection.close()
    while client.post("/api/view", json={"picture": {"sample": 0}}).status_code == 503:
        assert time.monotonic() < deadline
    assert client.post("/api/view", json={"picture": {"sample": 0}}).status_code == 200


def test_an_endless_request_loses_its_place(monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE_S", 0.1)
    sent, gate = [], Gate(waiting=0)

    async def never():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def go():
        scope = {"type": "http", "method": "POST", "path": "/api/view", "headers": [(b"host", b"localhost")]}
        await guard.RequestGuard(None, gate, {"localhost"})(scope, never, send)

    asyncio.run(go())
    assert sent[0]["status"] == 408
    assert gate.enter() is not None


def test_requests_are_computed_one_at_a_time():
    inside, most, lock = 0, 0, threading.Lock()

    def work():
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1

    async def go():
        gate = Gate()
        await asyncio.gather(*(gate.pass_through(work) for _ in range(6)))

    asyncio.run(go())
    assert most == 1


def test_a_port_or_address_that_cannot_be_used(trained, served, capsys):
    port = urlsplit(served[1]).port
    assert main(["serve", str(trained), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"cannot listen at 127.0.0.1 port {port}" in error and "--port" in error
    assert main(["serve", str(trained), "--host", "192.0.2.1"]) == 1
    assert "cannot listen at 192.0.2.1 port 8000" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(trained), "--port", "99999"])
    assert ended.value.code == 2


def test_a_missing_run_or_index_is_refused(trained, tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert "No checkpoint at" in capsys.readouterr().err
    assert main(["serve", str(trained), "--index", str(tmp_path), "--port", "0"]) == 1
    assert "No index at" in capsys.readouterr().err


def test_without_an_index_everything_but_search_works(trained):
    """It also ends at the signal of Ctrl-C though it was started with that signal ignored."""
    process, address = start(trained, ignored=[signal.SIGINT])
    try:
        with httpx.Client(base_url=address, timeout=60) as client:
            assert client.get("/api/about").json()["images"] == 0
            assert "--index" in refused(client.post("/api/search", json={"sentence": "x"}), 400)
            assert client.post("/api/view", json={"picture": {"sample": 0}}).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 0
        assert (process.stdout.splitlines()[1:], process.stderr) == (["Ended."], "")
