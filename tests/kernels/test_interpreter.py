"""The Triton kernels' own tests, in Triton's interpreter."""

import sys
from pathlib import Path

import pytest

from tests.conftest import run_command


def test_kernels_compute_what_they_should_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_*_triton.py"))
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = run_command([sys.executable, "-m", "pytest", *quiet, *files], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
