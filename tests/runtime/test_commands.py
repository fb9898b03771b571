"""Commands started from Python, and Ctrl-C while they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from mvlm.runtime.commands import STOPPING

SAVES = """
import signal, sys, time
def save(*_):
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
    run_command([sys.executable, "-c", {SAVES!r}], stop=signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_has_a_command_save_before_it_ends() -> None:
    """A terminal sends it to all processes of its group at once."""
    caller = subprocess.Popen([sys.executable, "-c", CALLS], stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert caller.stdout and caller.stdout.readline() == "training\n"
        os.killpg(caller.pid, signal.SIGINT)
        assert caller.communicate()[0].splitlines() == [STOPPING, "saved", "interrupted"]
    finally:
        caller.kill()
    assert caller.returncode == 0
