"""Triton kernels are tested in Triton's interpreter, in a separate process, and on a GPU if there is one."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*_triton.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
