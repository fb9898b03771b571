"""The real server on a trained run, in a process of its own."""

import signal

import httpx
import pytest

from tests.serve.process import start


@pytest.fixture(scope="session")
def served(trained, index, tmp_path_factory):
    """The server and its address; at Ctrl-C it must end without an error or temporary files."""
    scratch = tmp_path_factory.mktemp("scratch")
    process, address = start(trained, "--index", index, TMPDIR=str(scratch))
    yield process, address
    process.send_signal(signal.SIGINT)
    assert (process.wait(100), process.stdout.splitlines()[1:], process.stderr) == (0, ["Ended."], "")
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="session")
def client(served):
    with httpx.Client(base_url=served[1], timeout=60) as client:
        yield client
