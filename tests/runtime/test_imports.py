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


SCANNED = """
import sys
from collections import Counter
from mvlm.runtime.imports import uncollected

opened = Counter()
sys.addaudithook(lambda event, what: event == "open" and opened.update([str(what[0])]))
with uncollected():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
sources = [path for path in opened if "transformers/models/" in path and "/modeling_" in path and path.endswith(".py")]
times = round(sum(opened[path] for path in sources) / len(sources))
print(len(sources) > 300, times, CONFIG_MAPPING["roberta"].__name__, len(sys.meta_path))
import transformers
assert sys.modules["transformers.models"].RobertaConfig is transformers.RobertaConfig is CONFIG_MAPPING["roberta"]
"""


def test_transformers_reads_the_sources_of_its_models_only_once() -> None:
    ended = run_command([sys.executable, "-c", f"import sys; print(len(sys.meta_path)){SCANNED}"])
    before, found = ended.stdout.splitlines()
    sources, times, name, finders = found.split()
    assert (sources, times, name) == ("True", "1", "RobertaConfig"), ended.stderr
    assert int(finders) <= int(before) + 1 and ended.returncode == 0, "only transformers adds a finder"


READING = """
import sys
import mvlm.data.shards.mixture
print("pandas" in sys.modules, "torch" in sys.modules)
"""


def test_reading_shards_imports_neither_pandas_nor_torch() -> None:
    assert run_command([sys.executable, "-c", READING]).stdout == "False False\n"
