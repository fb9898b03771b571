"""If ranks do not find each other at the start of a run, they end with a sentence that says which are missing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as torch_dist

from mvlm.errors import ExitCode
from mvlm.runtime import dist, rendezvous
from mvlm.runtime.rendezvous import Rendezvous
from tests.conftest import ROOT, TINY
from tests.ranks import Copy, free_port, run_ranks

IMPATIENT = """
import sys
import mvlm.training.fit.run
from mvlm import __main__
from mvlm.runtime import rendezvous
print("imported", flush=True)
sys.stdin.read()
rendezvous.JOINING_S = 20.0
sys.exit(__main__.main(sys.argv[1:]))
"""


def start_rank(rank: int, port: int, shards: Path, run: Path) -> subprocess.Popen[str]:
    """Start one of three ranks, which trains once its stdin is closed, so that slow imports do not count as waiting."""
    config = ["mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", "train.steps=1"]
    words = [*config, *TINY, f"data.train={shards / 'train'}", f"run.dir={run}", "train.global_batch=12"]
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "train", *words],
        cwd=ROOT,
        env=os.environ | place | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.campaign
def test_every_rank_names_the_one_that_never_joined(scenes: Path, tmp_path: Path) -> None:
    port = free_port()
    ranks = {rank: start_rank(rank, port, scenes, tmp_path / "run") for rank in (0, 2)}
    for process in ranks.values():
        assert process.stdout and process.stdout.readline() == "imported\n"
    for process in ranks.values():
        assert process.stdin
        process.stdin.close()
        process.stdin = None
    said = {rank: process.communicate(timeout=240)[1] for rank, process in ranks.items()}
    assert [process.returncode for process in ranks.values()] == [ExitCode.REQUEUE, ExitCode.REQUEUE]
    for rank, words in said.items():
        assert f"Of 3 ranks these have not reached 127.0.0.1:{port} within 20 s: 1; see how their logs end" in words
        assert "Traceback" not in words and ("mvlm: rank 2: " in words) == (rank == 2)


def join_within_two_seconds() -> None:
    rendezvous.JOINING_S = 2.0
    dist.init()


def stderr_of_joining(rank: int, port: int) -> str:
    """What one of two ranks says on stderr as it tries to join on its own."""
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return run_ranks(join_within_two_seconds, MASTER_PORT=str(port), **place).stderr


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        said = stderr_of_joining(0, port)
    assert f"RanksApart: 127.0.0.1:{port} cannot be opened" in said and "give the launcher another port" in said


def test_the_address_of_a_missing_first_rank_is_named() -> None:
    port = free_port()
    assert f"RanksApart: Rank 0 cannot be reached at 127.0.0.1:{port}" in stderr_of_joining(1, port)


def test_the_address_of_a_first_rank_that_does_not_answer_is_named() -> None:
    store = torch_dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert f"RanksApart: Rank 0 at 127.0.0.1:{store.port} is gone (no answer)" in stderr_of_joining(1, store.port)


def serve_store(port: int) -> None:
    """Serve the first rank's store until killed."""
    store = torch_dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    assert store.port == port
    signal.pause()


def test_a_posted_value_is_read_however_slow_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first rank that has waited in vain for the second may have only a millisecond left for the third."""
    port = free_port()
    server = Copy(serve_store, port)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("RANK", "1")
    rendezvous = Rendezvous(30.0)
    rendezvous.post("here/1", True)
    server.send_signal(signal.SIGSTOP)
    threading.Timer(0.5, server.send_signal, [signal.SIGCONT]).start()
    assert rendezvous.read("here/1", 0.001) is True
    assert rendezvous.read("here/2", 0.001) is None
    server.wait(0)
