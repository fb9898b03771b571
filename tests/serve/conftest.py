"""The real server on a trained run, in a process of its own."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from tests.conftest import ROOT


def start(*words, ignored=(), **environment):
    """`mvlm serve` with these words on a free port: the process, and its address once it listens.

    `ignored` are signals that it inherits as ignored, as children of a background shell do Ctrl-C's.
    """

    def dispositions():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-m", "mvlm", "serve", *map(str, words), "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, preexec_fn=dispositions)
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.stderr.read()
    return process, found.group()


@pytest.fixture(scope="session")
def served(trained, index, tmp_path_factory):
    """The server and its address; it leaves nothing in the folder for temporary files and ends well at Ctrl-C."""
    scratch = tmp_path_factory.mktemp("scratch")
    process, address = start(trained, "--index", index, TMPDIR=str(scratch))
    yield process, address
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=100)
    assert (process.returncode, out, error) == (0, "Ended.\n", "")
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="session")
def client(served):
    with httpx.Client(base_url=served[1], timeout=60) as client:
        yield client
