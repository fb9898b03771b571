"""Ranks that do not come together at the start of a run end with a sentence that says who is missing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mvlm import dist
from mvlm.train.trainer import PREEMPTED
from tests.conftest import ROOT, TINY, free_port, run_command

IMPATIENT = "import sys; from mvlm import __main__, dist; dist.JOINING_S = 20.0; sys.exit(__main__.main(sys.argv[1:]))"


def starts(rank: int, port: int, shards: Path, run: Path) -> subprocess.Popen[str]:
    """One of three ranks of a run."""
    config = ["mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json", "train.steps=1"]
    words = [*config, *TINY, f"data.train={shards / 'train'}", f"run.dir={run}", "train.global_batch=12"]
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "train", *words],
        cwd=ROOT,
        env=os.environ | place | {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_all_name_the_rank_that_never_came(scenes: Path, tmp_path: Path) -> None:
    port = free_port()
    ranks = {rank: starts(rank, port, scenes, tmp_path / "run") for rank in (0, 2)}
    said = {rank: process.communicate(timeout=120)[1] for rank, process in ranks.items()}
    assert [process.returncode for process in ranks.values()] == [PREEMPTED, PREEMPTED]
    for rank, words in said.items():
        assert f"Of 3 ranks these have not come to 127.0.0.1:{port} within 20 s: 1; see how their logs end" in words
        assert "Traceback" not in words and ("mvlm: rank 2: " in words) == (rank == 2)


@pytest.fixture
def rank_of_two(monkeypatch: pytest.MonkeyPatch) -> int:
    """This process is to be one of two ranks; the port at which they are to meet."""
    port = free_port()
    monkeypatch.setattr(dist, "JOINING_S", 2.0)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    return port


def test_a_port_that_is_taken_is_named(rank_of_two: int) -> None:
    with socket.create_server(("", rank_of_two)), pytest.raises(dist.RanksApart) as raised:
        dist.init()
    assert f"127.0.0.1:{rank_of_two} cannot be opened" in str(raised.value) and "another port" in str(raised.value)
    assert raised.value.exit_code == PREEMPTED


def test_a_first_rank_that_is_not_there_is_named(rank_of_two: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(dist.RanksApart, match=f"Rank 0 is not to be reached at 127.0.0.1:{rank_of_two}"):
        dist.init()


def test_a_first_rank_that_gives_no_answer_is_named(rank_of_two: int) -> None:
    """Rank 1 comes to a store that nobody speaks for."""
    keeper = (
        "import sys, time; from datetime import timedelta; from torch.distributed import TCPStore;"
        f"store = TCPStore('127.0.0.1', {rank_of_two}, is_master=True, wait_for_workers=False);"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", keeper], stdin=-1, stdout=-1, text=True) as store:
        assert store.stdout and store.stdout.readline() == "open\n"
        done = run_command(
            [sys.executable, "-c", "import os; from mvlm import dist; dist.JOINING_S = 1; dist.init()"], RANK="1"
        )
        assert store.stdin and not store.stdin.close()
    assert f"Rank 0 at 127.0.0.1:{rank_of_two} is gone (no answer)" in done.stderr
