"""Imports without garbage collection: imported objects, and no others, are left out of later collections."""

from __future__ import annotations

import sys

from tests.conftest import run_command

WORDS = """
import atexit, gc
from mvlm.runtime.imports import uncollected

class Garbage:
    alive = 0
    def __init__(self):
        self.itself = self
        Garbage.alive += 1
    def __del__(self):
        Garbage.alive -= 1

atexit.register(lambda: print("at the end", gc.get_freeze_count()))
with uncollected():
    meanwhile = gc.isenabled()
    import fractions
imported = gc.get_freeze_count()
for _ in range(3):
    Garbage()
    with uncollected():
        import fractions
print(meanwhile, gc.isenabled(), imported > 1000, gc.get_freeze_count() == imported)
gc.collect()
print(Garbage.alive, gc.get_freeze_count() == imported)
gc.disable()
with uncollected():
    import decimal
print(gc.isenabled())
"""


def test_imported_objects_are_frozen_and_garbage_is_not() -> None:
    ended = run_command([sys.executable, "-c", WORDS])
    assert ended.stdout.splitlines() == ["False True True True", "0 True", "False", "at the end 0"], ended.stderr


READING = """
import sys
import mvlm.data.shards.mixture
print("pandas" in sys.modules, "torch" in sys.modules)
"""


def test_reading_shards_imports_neither_pandas_nor_torch() -> None:
    assert run_command([sys.executable, "-c", READING]).stdout == "False False\n"
