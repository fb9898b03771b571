"""Imports DeepSpeed without what it would compile or load and nobody uses."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mvlm.runtime import dist


@contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Replace an attribute of one of DeepSpeed's objects meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def without_inductor() -> Iterator[None]:
    """DeepSpeed imports an optimiser that is not used here, whose decorators would load torch's whole compiler: a
    second and 46 MB on every rank."""
    before = os.environ.get("TORCHDYNAMO_DISABLE", "")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ["TORCHDYNAMO_DISABLE"] = before


def tell_deepspeed() -> None:
    """Set what importing any of it reads from the environment, such as the accelerator, which it else searches for
    noisily."""
    if not dist.uses_cuda():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")


def load_deepspeed() -> Any:
    """DeepSpeed, imported and nothing more."""
    tell_deepspeed()
    # torch 2.13 has new names for collectives that DeepSpeed calls by the old ones
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    return deepspeed


def import_deepspeed() -> Any:
    """DeepSpeed with the ranks of this run, told to compile nothing for a CPU: gloo and torch's AdamW suffice there."""
    deepspeed = load_deepspeed()
    if not dist.uses_cuda():
        # to fill this in, DeepSpeed would try a compiler on all of its operations, and then look up only this one
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed(
        dist_backend="nccl" if dist.uses_cuda() else "gloo", auto_mpi_discovery=False, verbose=False
    )
    return deepspeed


def why_not_computed(low_precision: str) -> str:
    """A clause if this machine cannot compute in "bf16" or "fp16"; "" if it can."""
    tell_deepspeed()
    from deepspeed.accelerator import get_accelerator

    can = getattr(get_accelerator(), f"is_{low_precision}_supported")()
    return "" if can else f"enables {low_precision}, which {dist.device()} cannot compute"
