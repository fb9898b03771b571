"""An exported folder is pushed to a local server with the Hugging Face hub's protocol."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from mvlm.__main__ import main


class FakeHub(ThreadingHTTPServer):
    """Accepts one token and stores what is committed."""

    token = "of-a-test"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class HubRequest(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer(401, {"error": "Invalid user token."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.private[name] = asked.get("private", asked.get("visibility") == "private")
            return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})
        if "/preupload/" in self.path:
            given = json.loads(body)["files"]
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in given]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            return self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/abc", "commitOid": "abc"})
        return self.answer(200, {"warnings": [], "errors": []})  # validation of the card's header

    def do_GET(self) -> None:
        self.answer(404, {"error": "there is no such file"})

    do_HEAD = do_GET

    def answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", server.token)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_is_exported_and_pushed(
    run: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert main(["export", str(run), "--out", str(out), "--push-to-hub", "lab/model", "--private"]) == 0
    assert f"Pushed: {hub.url}/lab/model/commit/abc" in capsys.readouterr().out
    assert hub.private == {"lab/model": True}
    assert hub.files == {
        path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    assert {"config.json", "model.safetensors", "README.md", "modeling_maskvlm.py"} <= hub.files.keys()


def test_a_refused_push_is_one_sentence_and_keeps_the_folder(
    run: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-somebody-else")
    assert main(["export", str(run), "--out", str(tmp_path / "model"), "--push-to-hub", "lab/model"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "lab/model was not pushed" in said and "hf auth login" in said
    assert (tmp_path / "model/config.json").exists() and hub.files == {}
    onnx = ["export", str(run), "--out", str(tmp_path / "onnx"), "--format", "onnx", "--push-to-hub", "lab/model"]
    assert main(onnx) == 1 and not (tmp_path / "onnx").exists()
    assert main(["export", str(run), "--out", str(tmp_path / "not"), "--private"]) == 1
    assert "give --push-to-hub OWNER/NAME too" in capsys.readouterr().err and not (tmp_path / "not").exists()
