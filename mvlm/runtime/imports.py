"""Imports that take less time, and something to do once a module of others has been imported, and not before. (wrapt
has the latter, and takes 90 ms to import, which every loader process would wait for.)"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


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


def when_imported(name: str, do: Callable[[ModuleType], None]) -> None:
    """Call `do` with the module `name` as soon as it is imported, or now where it is."""
    if name in sys.modules:
        do(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Waiting(name, do))


class _Waiting(MetaPathFinder):
    def __init__(self, name: str, do: Callable[[ModuleType], None]) -> None:
        self.name, self.do = name, do

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute, do = spec.loader.exec_module, self.do

            def exec_module(module: ModuleType) -> None:
                execute(module)
                do(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
