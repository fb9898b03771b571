"""Shards, samples, images and loading; for other training loops, `from mvlm.data import CaptionLoader`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvlm.data.loading.captions import CaptionLoader as CaptionLoader

__all__ = ["CaptionLoader"]


def __getattr__(name: str) -> Any:
    """Import on demand: loader processes import this package and do without torch."""
    if name != "CaptionLoader":
        raise AttributeError(f"module 'mvlm.data' has no attribute {name!r}")
    return import_module("mvlm.data.loading.captions").CaptionLoader
