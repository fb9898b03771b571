"""The real server on a trained run, in a process of its own."""

import re
import signal
import time

import httpx
import pytest

from tests.ranks import Copy, mvlm


def start(*words, ignored=(), **environment):
    """`mvlm serve` with these words on a free port: the process, and its address once it listens.

    `ignored` are signals that it inherits as ignored, as children of a background shell do Ctrl-C's.
    """

    process = Copy(serve, ignored, *map(str, words), "--port", "0", **environment)
    while "\n" not in process.stdout:
        assert process.poll() is None, process.stderr
        time.sleep(0.02)
    return process, re.search(r"http://\S+", process.stdout).group()


def serve(ignored, *words):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    return mvlm("serve", *words)


@pytest.fixture(scope="session")
def served(trained, index, tmp_path_factory):
    """The server and its address; it leaves nothing in the folder for temporary files and ends well at Ctrl-C."""
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
