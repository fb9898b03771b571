"""Ranks that do not come together at the start of a run end with a sentence that says who is missing."""

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


def starts(rank: int, port: int, shards: Path, run: Path) -> subprocess.Popen[str]:
    """One of three ranks of a run, which begins when its stdin is closed: imports take as long as they take."""
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
def test_all_name_the_rank_that_never_came(scenes: Path, tmp_path: Path) -> None:
    port = free_port()
    ranks = {rank: starts(rank, port, scenes, tmp_path / "run") for rank in (0, 2)}
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


def join_soon() -> None:
    rendezvous.JOINING_S = 2.0
    dist.init()


def joins(rank: int, port: int) -> str:
    """What one of two ranks, which is told to come, says on stderr."""
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return run_ranks(join_soon, MASTER_PORT=str(port), **place).stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        said = joins(0, port)
    assert f"RanksApart: 127.0.0.1:{port} cannot be opened" in said and "give the launcher another port" in said


def test_a_first_rank_that_is_not_there_is_named() -> None:
    port = free_port()
    assert f"RanksApart: Rank 0 cannot be reached at 127.0.0.1:{port}" in joins(1, port)


def test_a_first_rank_that_gives_no_answer_is_named() -> None:
    store = torch_dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert f"RanksApart: Rank 0 at 127.0.0.1:{store.port} is gone (no answer)" in joins(1, store.port)


def keep_store(port: int) -> None:
    """As the first rank, until it is killed."""
    store = torch_dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    assert store.port == port
    signal.pause()


def test_a_word_is_found_however_slow_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first rank that has waited in vain for the second has a millisecond left for the third."""
    port = free_port()
    keeper = Copy(keep_store, port)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("RANK", "1")
    rendezvous = Rendezvous(30.0)
    rendezvous.post("here/1", True)
    keeper.send_signal(signal.SIGSTOP)
    threading.Timer(0.5, keeper.send_signal, [signal.SIGCONT]).start()
    assert rendezvous.read("here/1", 0.001) is True
    assert rendezvous.read("here/2", 0.001) is None
    keeper.wait(0)
