"""The preregistered campaign: its plan against the page, its analysis on known cases, its refusal of other code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.claim.paired import holm
from benchmarks.claim.scores import pack
from benchmarks.claim2 import budget, campaign, grounding, plan, table
from benchmarks.claim2.corpus import by_unit
from mvlm.config.load import load_config
from mvlm.errors import UserError
from tests.conftest import ROOT

PAGE = (ROOT / "docs/claim2.md").read_text(encoding="utf-8")


def test_holms_p_are_those_of_a_worked_example() -> None:
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_page_names_every_arm_as_it_is_run() -> None:
    rows = {row.split("|")[1].strip(" `"): row for row in PAGE.splitlines() if row.startswith("| `")}
    assert set(rows) == set(plan.ARMS)
    for arm, overrides in plan.ARMS.items():
        assert re.findall(r"objectives\.\S+?=[\w.]+", rows[arm].split("|")[2]) == list(overrides)
    for size in plan.SIZES.values():
        for arm in plan.ARMS:
            config = load_config(ROOT / size.toml, [*size.settings, *plan.ARMS[arm]])
            assert config.objectives.itc and config.objectives.itm and not config.data.flip and config.train.spike == 0


def test_the_grid_has_the_cells_of_the_page_and_the_primary_ones_first() -> None:
    cells = plan.grid(plan.SIZES["small"])
    assert len(cells) == len(set(cells)) == 5 * 3 * 5 + 3 * 5
    assert {cell.arm for cell in cells[:3]} == {"joint", "independent", "itc_itm"}
    assert {cell.share for cell in cells[:3]} == {20}
    assert len(plan.rate_cells()) == 15 and not {c.seed for c in plan.rate_cells()} & {c.seed for c in cells}


def record(arm: str, seed: int, foils: np.ndarray, share: int = 20) -> dict[str, Any]:
    packed = {"foils": pack(foils), "recall": pack(np.full(40, 0.5))}
    return {"cell": f"icons/{arm}/{share}/{seed}", "arm": arm, "share": share, "seed": seed, "units": packed}


def test_the_answer_waits_for_all_seeds_and_names_the_direction() -> None:
    rng, records = np.random.default_rng(0), []
    for seed in range(10):
        for arm, mean in (("joint", 0.8), ("independent", 0.8), ("itc_itm", 0.6)):
            records.append(record(arm, seed, np.clip(mean + 0.05 * rng.normal(size=60), 0, 1)))
    size = plan.SIZES["small"]
    waiting = table.primary(records[:-1], size)
    assert "9 of itc_itm" in waiting and "better" not in waiting
    answers = [line.split("|")[-2].strip() for line in table.primary(records, size).splitlines()[2:]]
    assert answers == ["no difference shown", "no difference shown", "better", "no difference shown"]
    swapped = [r | {"arm": {"joint": "itc_itm", "itc_itm": "joint"}.get(r["arm"], r["arm"])} for r in records]
    assert [line.split("|")[-2].strip() for line in table.primary(swapped, size).splitlines()[2:]][2] == "worse"


def test_the_sitting_on_a_gpu_is_that_of_the_page() -> None:
    """All updates counted cell by cell, and the page's figures."""
    size = plan.SIZES["gpu"]
    found = budget.budget(size)
    icons = sum(350 if cell.rate else 700 for cell in (*plan.rate_cells(), *plan.grid(size)))
    scenes = len(plan.ARMS) * 5 * (400 + 133)
    assert (found.updates, found.cells) == (icons + scenes, 15 + 90 + 50)
    assert found.left_s == pytest.approx(1500 - 15 * 155 / 8)
    assert found.update_s * found.updates == pytest.approx(found.left_s)
    for figure in (f"{found.updates:,} updates", f"{found.products_s:,.0f} s", f"{found.left_s:,.0f} s"):
        assert figure in PAGE, figure
    assert f"{1000 * found.update_s:.0f} ms" in PAGE and f"{found.mfu:.1%}".replace("%", " %") in PAGE


def test_a_unit_weighs_the_same_whatever_its_rows() -> None:
    assert by_unit(np.array([1.0, 0.0, 0.0, 1.0]), np.array([7, 7, 7, 9])) == pytest.approx([1 / 3, 1.0])


def test_code_that_is_not_committed_is_refused_and_results_do_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    results = tmp_path / "benchmarks/claim2/results/small"
    code, page = tmp_path / "mvlm/code.py", tmp_path / "docs/claim2.md"
    for file in (code, page, tmp_path / "data_tools/a", tmp_path / "ds_configs/a", tmp_path / "benchmarks/a"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n")
    me = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *me, *words], check=True, capture_output=True)

    with pytest.raises(UserError, match="git says"):
        campaign.code_commit(results)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    commit = campaign.code_commit(results)
    (results / commit).mkdir(parents=True)
    (results / commit / "cells.jsonl").write_text("{}\n")
    git("add", ".")
    git("commit", "-qm", "results")
    assert campaign.code_commit(results) == commit
    page.write_text("another plan\n")
    with pytest.raises(UserError, match=r"docs/claim2\.md is not as it was committed"):
        campaign.code_commit(results)
    git("commit", "-qam", "another plan")
    assert campaign.code_commit(results) != commit
    (tmp_path / "mvlm/new.py").write_text("\n")
    with pytest.raises(UserError, match=r"mvlm/new\.py is not as it was committed"):
        campaign.code_commit(results)


def test_colour_words_are_found_where_the_caption_has_them() -> None:
    caption = "red circle top left, blue star bottom right"
    found = list(grounding.colours(caption))
    assert found == [("red", 0, 0), ("blue", 21, 3)]
    assert [caption[at : at + len(word)] for word, at, _ in found] == ["red", "blue"]


def test_a_false_caption_asks_whether_words_follow_the_picture() -> None:
    captions = ["red circle top left, blue star top right", "blue circle top left, red star top right"]
    dataset: Any = SimpleNamespace(captions=captions)
    hits: dict[str, list[bool]] = {"grounded": [], "grounded_picture": [], "grounded_sentence": []}
    grounding._note(hits, dataset, 0, 0, [0, 3])
    grounding._note(hits, dataset, 0, 1, [1, 1])  # blue looks at the picture's blue, red where the sentence says
    assert hits == {
        "grounded": [True, False],
        "grounded_picture": [True, False],
        "grounded_sentence": [False, True],
    }
