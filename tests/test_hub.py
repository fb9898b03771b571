"""Without a network, downloads end at once in a sentence; a hub that answers is used."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from huggingface_hub import constants

from mvlm.check.models import _check_weights
from mvlm.check.report import Report
from mvlm.config.load import load_config
from mvlm.data.samples.tokenizer import load_tokenizer
from mvlm.errors import UserError
from mvlm.pretrained.encoders import build_image_encoder, text_settings
from mvlm.pretrained.load import fill_image_encoder
from mvlm.pretrained.read import read_tensors
from mvlm.runtime import hub
from tests.conftest import ROOT, free_port

TEXT = ("model.text=FacebookAI/roberta-base", "model.text_weights=pretrained")
VISION = ("model.vision=vit_tiny_patch16_224", "model.vision_args={}", "model.vision_weights=pretrained")
CONFIG = load_config(ROOT / "mvlm/configs/tiny.toml", [*TEXT, *VISION]).model


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """endpoint(address) points the hub's client at an address that has not been asked yet."""

    def at(address: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        hub.absence.cache_clear()

    yield at
    hub.absence.cache_clear()


@pytest.mark.parametrize(
    "fetch",
    [
        lambda: load_tokenizer("FacebookAI/no-such-tokenizer"),
        lambda: text_settings(CONFIG, None),  # type: ignore[arg-type]
        lambda: fill_image_encoder(build_image_encoder(CONFIG), CONFIG),
        lambda: read_tensors("hf-hub:owner/no-such-weights"),
    ],
    ids=["tokenizer", "text", "vision", "weights"],
)
def test_without_a_network_a_download_ends_at_once_in_a_sentence(
    endpoint: Callable[[str], None], fetch: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    endpoint(address)
    with pytest.raises(UserError) as error:
        fetch()
    assert f"; {address} does not answer (" in str(error.value) and "refused" in str(error.value)
    said = capsys.readouterr().err
    assert said.startswith(f"mvlm: {address} does not answer (") and said.count("\n") == 1, said


def test_check_reports_weights_that_cannot_be_downloaded(endpoint: Callable[[str], None]) -> None:
    endpoint(f"http://127.0.0.1:{free_port()}")
    report = Report("check")
    _check_weights(report, CONFIG)
    assert len(report.problems) == 2
    assert all("are not in this machine's cache, and http://127.0.0.1" in problem for problem in report.problems)


def test_a_hub_that_never_answers_is_waited_for_only_once(
    endpoint: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint(f"http://127.0.0.1:{server.getsockname()[1]}")
        begun = time.monotonic()
        hub.ask()
        assert time.monotonic() - begun < 5 and constants.HF_HUB_OFFLINE
        assert "does not answer" in hub.why_offline()
        monkeypatch.setattr(hub, "PATIENCE", 60)
        begun = time.monotonic()
        hub.ask()
        assert time.monotonic() - begun < 30  # not asked again


@pytest.mark.parametrize(("status", "offline"), [("200 OK", False), ("404 Not Found", False), ("503 Busy", True)])
def test_a_hub_that_answers_is_used_unless_it_is_unavailable(
    endpoint: Callable[[str], None], status: str, offline: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        endpoint(f"http://127.0.0.1:{server.getsockname()[1]}")
        hub.ask()
    assert offline == constants.HF_HUB_OFFLINE == bool(hub.why_offline())
