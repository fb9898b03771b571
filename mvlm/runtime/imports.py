"""Imports that take less time."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

SCANNER = "transformers.utils.import_utils"


@contextmanager
def uncollected() -> Iterator[None]:
    """Search for no garbage among what is imported meanwhile, nor later, until the process ends.

    Torch, transformers and DeepSpeed make half a million objects that stay. To look through them again and again as
    they come takes a sixth of a rank's start. Nor does transformers read all of its models' sources twice.
    """
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    sys.meta_path.insert(0, _ScannedOnce)
    try:
        yield
    finally:
        sys.meta_path.remove(_ScannedOnce)
        if len(sys.modules) > before:  # or garbage would be kept that is no import's
            gc.freeze()
            atexit.register(gc.unfreeze)  # some libraries complain of what is left at the end
        if collects:
            gc.enable()


class _ScannedOnce:
    """Finds the module by which transformers scans 2,600 sources, 45 MB, for the names in them, once for itself and
    once for its models: it remembers 128 of their 500 folders, and the second time none of those that it asks for."""

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
