"""A step whose output is in an object store, configured by variables of the pipeline, that goes away."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.pipeline.file import load_pipeline
from cluster.pipeline.graph import Graph
from cluster.pipeline.proof import is_proven
from cluster.pipeline.step import STOP_SIGNALS, StepRun
from cluster.pipeline.submission import RECORD, Submission, draft, prepare
from mvlm.runtime import storage
from mvlm.runtime.launch import free_port

moto = pytest.importorskip("moto.moto_server.werkzeug_app")
serving = pytest.importorskip("werkzeug.serving")
s3fs = pytest.importorskip("s3fs")
PIPELINE = """
[pipeline]
name = "stored"

[pipeline.environment]
AWS_ENDPOINT_URL = "{url}"
AWS_ACCESS_KEY_ID = "test"
AWS_SECRET_ACCESS_KEY = "env:SECRET"
AWS_MAX_ATTEMPTS = "1"

[[step]]
name = "put"
kind = "command"
command = ["sh", "-c", "echo done >>ran"]
writes = ["s3://bucket/made"]
"""


class S3:
    """A server that goes away and comes back with what it had."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        content = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._server = serving.make_server("127.0.0.1", self._port, content, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(name="store")
def s3_that_stops() -> Iterator[S3]:
    store = S3()
    store.start()
    yield store
    store.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def submission(store: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submission]:
    """Of a user who has all variables; the process of the step knows only the secret."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "PAUSES_S", (0.01,))
    users = {"AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    users |= {"AWS_MAX_ATTEMPTS": "1"}
    for name, value in (users | {"SECRET": "test"}).items():
        monkeypatch.setenv(name, value)
    Path("stored.toml").write_text(PIPELINE.format(url=store.url))
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("bucket")
    graph = Graph(load_pipeline("stored.toml", []))
    made = draft(graph, [], "local")
    Path(made.logs).mkdir(parents=True)
    prepare(graph, made)
    made.save()
    files.pipe_file("bucket/made", b"what the command makes")
    s3fs.S3FileSystem.clear_instance_cache()
    for name in users:
        monkeypatch.delenv(name)
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_step_is_retried_while_its_store_is_gone(store: S3, submission: Submission) -> None:
    store.stop()
    back = threading.Thread(target=start_after_an_attempt, args=(store, submission))
    back.start()
    assert StepRun(submission, "put", 0).run() == 0
    back.join()
    codes = [attempt["exit_code"] for attempt in record(submission)["attempts"]]
    assert codes[0] == 75 and codes[-1] == 0
    assert is_proven(submission.graph(), "put", submission.queued["put"].key)


def start_after_an_attempt(store: S3, submission: Submission) -> None:
    path = submission.folder("put") / RECORD
    while not path.exists() or record(submission)["attempts"][0]["exit_code"] is None:
        time.sleep(0.02)
    store.start()


def record(submission: Submission) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((submission.folder("put") / RECORD).read_text())
    return found
