"""The wrapper between a launcher and a rank."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.logs import rank_log
from mvlm.runtime.launch import free_port
from tests.conftest import ROOT

SLOW_TO_LISTEN = """
import signal, sys, time
print("up", flush=True)
time.sleep(1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
time.sleep(30)
"""


def start(folder, *command, **environment):
    folder.mkdir(parents=True, exist_ok=True)
    others = {name: value for name, value in os.environ.items() if name not in ("RANK", "SLURM_PROCID")}
    words = [sys.executable, ROOT / "cluster/rank.py", folder, *command]  # as a script, alone: DeepSpeed runs it so
    return subprocess.Popen(words, env=others | environment, cwd=folder)


@pytest.mark.parametrize(("end", "code"), [("exit 0", 0), ("exit 75", 75), ("kill -9 $$", 137)])
@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_output_and_exit_code_are_recorded(tmp_path, end, code, variable):
    folder = rank_log(tmp_path, 3, 0).parent
    assert start(folder, "sh", "-c", f"echo out; echo err >&2; {end}", **{variable: "12"}).wait(20) == code
    assert rank_log(tmp_path, 3, 12).read_text() == "out\nerr\n"
    assert [path.name for path in folder.glob("exit-*")] == [f"exit-{code}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_waits_until_the_rank_listens(tmp_path, number):
    process = start(tmp_path, sys.executable, "-c", SLOW_TO_LISTEN)
    log = tmp_path / "rank-00000.log"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == 75


@pytest.mark.parametrize("command", ["evaluate retrieval --data shards", "index shards --out index", "score shards"])
def test_a_command_without_steps_to_save_ends_at_a_signal(tmp_path, command):
    """Even while it waits for another rank, or is still importing."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/index.json").touch()
    words = [sys.executable, "-m", "mvlm", *command.split(), "--checkpoint", "run"]
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = start(tmp_path, *words, **ranks, PYTHONPATH=str(ROOT))
    log = tmp_path / "rank-00000.log"
    while not log.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert log.read_text() == "Stopped by a signal: start the same command again.\n"


def test_a_command_can_be_read_from_a_file(tmp_path):
    hostile = "$(touch pwned) it's\n"
    words = ["env", f"WORD={hostile}", "sh", "-c", 'printf %s "$WORD$1"', "_", hostile]
    (tmp_path / "command").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    process = start(tmp_path)
    assert process.wait(20) == 0 and (tmp_path / "rank-00000.log").read_text() == 2 * hostile
    assert (tmp_path / "rank-00000.pid").read_text() == str(process.pid) and not (tmp_path / "pwned").exists()
