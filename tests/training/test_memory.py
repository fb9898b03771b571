"""Freed memory is used again, in a process of its own: the setting stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

STEPS = """
import resource, sys, torch
from mvlm.runtime.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
counts = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(12_000_000) for _ in range(2)]
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(counts[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_faults_no_pages_that_the_step_before_had() -> None:
    faults = {}
    for word in ("keep", "leave"):
        done = subprocess.run([sys.executable, "-c", STEPS, word], cwd=ROOT, capture_output=True, text=True, check=True)
        faults[word] = int(done.stdout)
    assert faults["keep"] < 100 < faults["leave"]
