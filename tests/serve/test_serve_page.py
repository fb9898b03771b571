"""The commands of docs/serve.md, and the limits that it names."""

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
        elif "--index" in words:  # the other is in test_hostile_requests.py
            process, address = start(*words[: words.index("--port")])
            assert address.startswith("http://127.0.0.1:")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=100) == 0


def test_the_page_names_the_limits_of_the_server():
    text = " ".join(PAGE.split())
    assert f"{PIXEL_LIMIT // 10**6} million pixels" in text
    assert f"{guard.BODY_LIMIT / 1e6:.1f} MB is refused" in text
    assert f"after {guard.PATIENCE_S} seconds" in text
    assert gate.WAITING == 8 and "Eight requests may wait" in text
    connections, of_one = connection.CONNECTIONS, connection.PER_CLIENT
    assert f"At most {connections} connections are open at a time, and {of_one} from one address" in text
    assert f"sends no request headers for {connection.HEADERS_S} seconds" in text
