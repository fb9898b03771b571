"""Faster imports, and what is installed."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata


def installed(name: str) -> str:
    """The version of an installed package; "" if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from scanning what is imported in the block, until the process ends.

    Torch, transformers and DeepSpeed make half a million objects that stay. Looking through them again and again as
    they come takes a sixth of a rank's start.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # otherwise only garbage unrelated to imports would be kept
            gc.freeze()
            atexit.register(gc.unfreeze)  # some libraries complain at exit of what is left
        if collects:
            gc.enable()
