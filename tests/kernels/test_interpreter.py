"""Runs the tests of the Triton kernels in Triton's interpreter."""

import sys
from pathlib import Path

import numpy
import pytest
from packaging.version import Version

from tests.conftest import run_command


def test_the_kernels_pass_their_tests_in_the_interpreter() -> None:
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip(f"the interpreter of Triton {triton.__version__} cannot count with NumPy {numpy.__version__}")
    files = sorted(str(path) for path in Path(__file__).parent.glob("test_*_triton.py"))
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = run_command([sys.executable, "-m", "pytest", *quiet, *files], TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
