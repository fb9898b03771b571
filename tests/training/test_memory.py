"""Freed memory is used again, in a process of its own: the setting stays."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

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
