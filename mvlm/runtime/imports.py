"""Imports that take less time."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Search for no garbage among what is imported meanwhile, nor later, until the process ends.

    Torch, transformers and DeepSpeed make half a million objects that stay. To look through them again and again as
    they come takes a sixth of a rank's start.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # or garbage would be kept that is no import's
            gc.freeze()
            atexit.register(gc.unfreeze)  # some libraries complain of what is left at the end
        if collects:
            gc.enable()
