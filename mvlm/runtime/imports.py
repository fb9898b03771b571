"""Faster imports, and what is installed."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

SCANNER = "transformers.utils.import_utils"


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
    they come takes a sixth of a rank's start. Nor does transformers read all of its models' sources twice.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    sys.meta_path.insert(0, _ScannedOnce)
    try:
        yield
    finally:
        sys.meta_path.remove(_ScannedOnce)
        if len(sys.modules) > before:  # otherwise only garbage unrelated to imports would be kept
            gc.freeze()
            atexit.register(gc.unfreeze)  # some libraries complain at exit of what is left
        if collects:
            gc.enable()


class _ScannedOnce:
    """Has transformers scan its 2,600 sources (45 MB) for names only once: it does so for itself and again for its
    models, and its cache of 128 of their 500 folders then has none of those that it asks for."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path) if name == SCANNER else None
        if found and found.loader:
            execute = found.loader.exec_module

            def remember_all(module: ModuleType) -> None:
                execute(module)
                if scan := getattr(module.__dict__.get("create_import_structure_from_path"), "__wrapped__", None):
                    module.__dict__["create_import_structure_from_path"] = cache(scan)

            found.loader.exec_module = remember_all  # type: ignore[method-assign]
        return found
