"""The commands of docs/serve.md, as far as they end by themselves, and what it says of limits."""

import re
import shlex
import signal

from mvlm.__main__ import main
from mvlm.data.images.encoded import PIXEL_LIMIT
from mvlm.serve import connection, gate, guard
from tests.conftest import ROOT
from tests.serve.process import start

PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_every_command_runs(trained, scenes, tmp_path):
    places = {"runs/mine": trained, "shards/eval": scenes / "eval", "corpus.index": tmp_path / "index"}
    commands = re.findall(r"^mvlm (.*)", PAGE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        name, *words = [str(places.get(word, word)) for word in shlex.split(command)]
        if name == "index":
            assert main([name, *words]) == 0
        elif "--index" in words:  # the other is among the tests of its own
            process, address = start(*words[: words.index("--port")])
            assert address.startswith("http://127.0.0.1:")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=100) == 0


def test_the_limits_are_those_it_names():
    assert f"{PIXEL_LIMIT // 10**6} million pixels" in PAGE
    assert f"{guard.BODY_LIMIT / 1e6:.1f} MB is refused" in PAGE
    assert f"after {guard.PATIENCE_S} seconds" in PAGE
    assert gate.WAITING == 8 and "Eight requests may wait" in PAGE
    assert f"{connection.CONNECTIONS} connections at most, and {connection.PER_CLIENT} of one address" in PAGE
    assert f"after {connection.HEADERS_S} seconds without a request's headers" in PAGE
