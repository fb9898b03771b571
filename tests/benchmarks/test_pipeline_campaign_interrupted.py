"""An interrupted campaign of faults in pipelines leaves neither nodes nor its disk behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.ray_fixture import cannot_run_here
from tests.cluster.slurm_fixture import why_not
from tests.conftest import ROOT

CAMPAIGN = """
import sys
from pathlib import Path
from benchmarks.pipeline.campaign import at
with at(sys.argv[1], Path(sys.argv[2]), ["command"]):
    sys.exit("booted without an interruption")
"""


@pytest.mark.parametrize(("backend", "seen"), [("slurm", "nodes/n1"), ("ray", "head.log")])
def test_an_interrupted_boot_leaves_nothing(backend: str, seen: str, tmp_path: Path) -> None:
    """While a node boots, and while a daemon starts on one."""
    if reason := why_not() if backend == "slurm" else cannot_run_here():
        pytest.skip(reason)
    command = [sys.executable, "-c", CAMPAIGN, backend, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as campaign:
        deadline = time.monotonic() + 120
        while not (tmp_path / "site" / seen).exists():
            assert campaign.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(campaign.pid, signal.SIGINT)  # as a terminal does
        assert "KeyboardInterrupt" in campaign.communicate(timeout=120)[1]
    time.sleep(1)  # until the last process of a node is reaped
    assert [words for process in psutil.process_iter() if str(tmp_path) in (words := words_of(process))] == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def words_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
