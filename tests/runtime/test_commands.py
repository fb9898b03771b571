"""Commands started from Python, and Ctrl-C while they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvlm.errors import UserError
from mvlm.runtime.commands import STOPPING, run_command

SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(float(sys.argv[2]))
    open(sys.argv[1], "w").close()
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("training", flush=True)
time.sleep(600)
"""

CALLS = f"""
import signal, sys
from mvlm.runtime.commands import run_command
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    run_command([sys.executable, "-c", {SAVES!r}, *sys.argv[1:]], stop=signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def call(saved: Path, seconds: float = 0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CALLS, str(saved), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0)


def test_a_command_saves_if_its_caller_is_killed(tmp_path: Path) -> None:
    """As by restarting a notebook: otherwise it would train on with nobody to see or stop it."""
    with call(tmp_path / "saved") as caller:
        assert caller.stdout and caller.stdout.readline() == "training\n"
        caller.kill()
    deadline = time.monotonic() + 60
    while not (tmp_path / "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_saves_at_ctrl_c_before_it_ends(tmp_path: Path) -> None:
    """A terminal sends the signal to the whole process group."""
    caller = call(tmp_path / "saved")
    try:
        assert caller.stdout and caller.stdout.readline() == "training\n"
        os.killpg(caller.pid, signal.SIGINT)
        assert caller.communicate()[0].splitlines() == [STOPPING, "saved", "interrupted"]
    finally:
        caller.kill()
    assert caller.returncode == 0


def test_a_second_ctrl_c_waits_for_the_save(tmp_path: Path) -> None:
    """Otherwise the caller would name the checkpoint to resume from before it is saved, and leave the run behind."""
    caller = call(tmp_path / "saved", seconds=2)
    try:
        assert caller.stdout and caller.stdout.readline() == "training\n"
        os.killpg(caller.pid, signal.SIGINT)
        assert caller.stdout.readline() == f"{STOPPING}\n"
        os.killpg(caller.pid, signal.SIGINT)
        assert caller.communicate()[0].splitlines() == [STOPPING, "saved", "interrupted"]
    finally:
        caller.kill()
    assert (tmp_path / "saved").exists()


def test_the_error_of_a_killed_command_says_that_the_same_call_resumes() -> None:
    kills = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(UserError, match=r"ended by SIGKILL, .* memory .*: make the same call again, which resumes"):
        run_command([sys.executable, "-c", kills])
