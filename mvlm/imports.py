"""Something to do once a module of others has been imported, and not before. (wrapt has the same, and takes 90 ms to
import, which every loader process would wait for.)"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


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
