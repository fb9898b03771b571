"""Freed memory is reused; tested in separate processes, since the setting cannot be undone."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from mvlm.__main__ import COMMANDS, INFERRING
from mvlm.runtime.cpu import keep_freed_memory
from tests.ranks import run_ranks


def print_page_faults(keep: bool) -> None:
    """The most page faults of a step that allocates the same as the steps before it."""
    if keep:
        assert keep_freed_memory()
    counts = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        first, second = torch.ones(12_000_000), torch.ones(12_000_000)
        del first, second
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(max(counts[2:]))


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_step_does_not_fault_the_pages_of_the_step_before_again() -> None:
    kept, returned = (int(run_ranks(print_page_faults, keep).stdout) for keep in (True, False))
    assert kept < 100 < returned


def page_faults_of(*words: str) -> int:
    """Page faults of a process of this command line that makes and frees five arrays of 32 MB, one after another."""
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


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_commands_that_infer_keep_freed_memory() -> None:
    assert set(COMMANDS) >= INFERRING
    returned = page_faults_of("plan")
    assert page_faults_of("index") < 0.1 * returned
    assert page_faults_of("--local_rank=0", "index") < 0.1 * returned, "as deepspeed calls it"
