"""Freed memory is used again, in a process of its own: the setting stays."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from mvlm.__main__ import COMMANDS, INFERRING
from mvlm.runtime.cpu import keep_freed_memory
from tests.ranks import run_ranks


def make_steps(keep: bool) -> None:
    if keep:
        assert keep_freed_memory()
    counts = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        [torch.ones(12_000_000) for _ in range(2)]
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(max(counts[2:]))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_faults_no_pages_that_the_step_before_had() -> None:
    kept, left = (int(run_ranks(make_steps, keep).stdout) for keep in (True, False))
    assert kept < 100 < left


def page_faults(*words: str) -> int:
    """Of five arrays of 32 MB made and let go, one after another, in a process of that command line."""
    code = f"""
import resource, sys
import numpy as np
import mvlm.__main__ as entry
def main():
    np.ones(1 << 22)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(1 << 22)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return 0
entry.main, sys.argv = main, ["mvlm", *{words!r}]
entry.run()
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_commands_that_infer_keep_freed_memory() -> None:
    assert set(COMMANDS) >= INFERRING
    given_back = page_faults("plan")
    assert page_faults("index") < 0.1 * given_back
    assert page_faults("--local_rank=0", "index") < 0.1 * given_back, "as deepspeed calls it"
