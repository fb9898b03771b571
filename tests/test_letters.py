"""Every default of the method is marked with its origin, P, R or D, in the code, the recipes and on the page."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from mvlm.config import schema
from mvlm.config.schema import Config
from tests.conftest import ROOT
from tests.scripts import load_script

LETTER = re.compile(r"\((?:[^()]*[ ,;:])?[PRD](?:[:;,] [^()]*)?\)")
"""P, R or D in brackets, alone or with a few words."""

ELSEWHERE = {"run", "kernels", "checkpoint", "log"}
"""Tables about how a run is carried out, not about the method."""

OPERATIONAL = {
    "data": "train where eval shuffle shuffle_block shuffle_window shuffle_shards cache cache_gb patience workers "
    "worker_mode prefetch tolerance",
    "train": "micro_batch deterministic time_limit spike max_skipped checksums audit hang_minutes compile recompute",
    "eval": "every select select_lower patience foils classes batch limit memory_gb share",
}
"""Such keys of other tables: they change how a result is reached, not the result."""

PAPERS = ["base", "base_4m", "vqa", "nlvr2", "entailment", "retrieval_coco", "retrieval_flickr30k"]
RECIPES = [*PAPERS, *(f"ablation/{path.stem}" for path in sorted((ROOT / "mvlm/configs/ablation").glob("*.toml")))]


def of_method(table: str, key: str) -> bool:
    return table not in ELSEWHERE and key not in OPERATIONAL.get(table, "").split()


def meanings() -> dict[str, str]:
    """The comments that the reference page shows, by dotted key."""
    reference = load_script(ROOT / "docs/hooks/reference.py")
    comments = reference.meanings(schema)
    hints = typing.get_type_hints(Config)
    return {
        f"{table}.{field.name}": comments[f"{hints[table].__name__}.{field.name}"]
        for table in (each.name for each in dataclasses.fields(Config))
        for field in dataclasses.fields(hints[table])
    }


def test_every_default_of_the_method_has_its_letter() -> None:
    found = meanings()
    assert {key for key, text in found.items() if of_method(*key.split(".")) and not LETTER.search(text)} == set()
    named = {f"{table}.{key}" for table, keys in OPERATIONAL.items() for key in keys.split()}
    assert named <= found.keys()
    assert {key for key in named if LETTER.search(found[key])} == set()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_value_of_a_recipe_of_the_paper_has_its_letter(recipe: str) -> None:
    table, without = "", []
    for line in Path(ROOT / f"mvlm/configs/{recipe}.toml").read_text(encoding="utf-8").splitlines():
        key, equals, rest = line.partition(" = ")
        if line.startswith("["):
            table = line.strip("[]")
        elif (
            table not in ("", "task") and equals and of_method(table, key) and not LETTER.search(rest.partition("#")[2])
        ):
            without.append(f"{table}.{key}")
    assert table and without == []


@pytest.mark.parametrize("heading", ["The parts", "The recipe"])
def test_every_row_of_the_methods_page_has_its_letter(heading: str) -> None:
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| [a-zA-Z]", line)]
    assert len(rows) >= 7
    assert [row for row in rows if not LETTER.search(row) and not row.startswith("| part |")] == []


def test_only_a_letter_in_brackets_counts() -> None:
    for text in ("(P)", "x (R) y", "(R: none)", "(D; ALBEF: 25)", "(timm's, P)", "(P: ViT, weights: D)"):
        assert LETTER.search(text), text
    for text in ("P", "(Pixels)", "()", "D as ours", "(DeiT)"):
        assert not LETTER.search(text), text
