"""Reasons for a rank to ask that the run stop: a signal, its launcher's death, the clock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvlm.training.health.signals import SIGNALS, StopRequests
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("own_signals")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_does_not_end_the_process(number: int) -> None:
    stop = StopRequests()
    assert not stop.signalled
    os.kill(os.getpid(), number)
    assert stop.signalled


RANK = """
import time
from mvlm.training.health.signals import StopRequests
stop = StopRequests()
print("listening", len(stop._launchers), flush=True)
while not stop.orphaned():
    time.sleep(0.02)
print("orphaned", flush=True)
"""
MIDDLE = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], env={env!r})"
OUTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.mark.parametrize("victim", ["outer", "middle"])
def test_the_death_of_any_launcher_above_is_noticed(victim: str) -> None:
    """`deepspeed` starts a process that starts the ranks; either may die."""
    env = os.environ | {"RANK": "0", "PYTHONPATH": str(ROOT)}
    middle = MIDDLE.format(env=env)
    # A launcher is recognised by names in its command line.
    outer = subprocess.Popen(
        [sys.executable, "-c", OUTER, middle, RANK, "deepspeed"], stdout=subprocess.PIPE, text=True
    )
    assert outer.stdout and outer.stdout.readline() == "listening 2\n"
    children = subprocess.run(["pgrep", "-P", str(outer.pid)], capture_output=True, text=True, check=True)
    os.kill(outer.pid if victim == "outer" else int(children.stdout), signal.SIGKILL)
    assert outer.stdout.readline() == "orphaned\n"
    outer.wait()


LAUNCHER = """
import os, subprocess, sys
if sys.argv[1:]:
    subprocess.run([sys.executable, "-c", sys.argv[1]], env=os.environ | {"RANK": "0"})
"""
ASK = "from mvlm.training.health.signals import StopRequests; print(StopRequests().launcher_ends_all_ranks())"


@pytest.mark.parametrize(("name", "ends"), [("torchrun", True), ("deepspeed", True), ("rank.py", False)])
def test_a_rank_knows_whether_its_launcher_ends_all_ranks_when_one_ends(tmp_path: Path, name: str, ends: bool) -> None:
    script = tmp_path / name
    script.write_text(LAUNCHER)
    command = [sys.executable, "-u", str(script), ASK, "--deepspeed_config", "ds_configs/zero1.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{ends}\n"


def test_a_process_without_a_launcher_is_never_orphaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert not StopRequests().orphaned()


def test_a_time_limit_leaves_room_for_three_steps_two_checkpoints_and_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    stop = StopRequests()
    assert not stop.time_is_up(1e9, 1e9, 1e9)  # no limit
    stop.limit_time(100.0)
    assert not stop.time_is_up(1.0, 1.0, 0.0)
    assert not stop.time_is_up(1000.0, 1400.0, 0.0)  # 3 * 1000 + 2 * 1400 + 60 fit into 6000 s
    assert stop.time_is_up(1000.0, 1500.0, 0.0)


def test_slurms_time_limit_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 100))
    stop = StopRequests()
    assert not stop.time_is_up(10.0, 30.0, 0.0)  # 90 s and 5 % of the time fit into 100 s
    assert stop.time_is_up(10.0, 45.0, 0.0)
    stop.limit_time(60.0)  # the run's own limit takes precedence
    assert not stop.time_is_up(10.0, 45.0, 0.0)
