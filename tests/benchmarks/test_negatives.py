"""The comparison of ITM's groups: tables of cells, and that cells differ only in their group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.claim.scores import pack
from benchmarks.negatives.compare import GROUPS, KEY, plans, tables
from mvlm.config.load import load_config


def made_record(group: int, seed: int, score_N: np.ndarray) -> dict[str, object]:
    """The record of a cell that took as many seconds as it has candidates."""
    numbers = {"foils_itm": float(score_N.mean()), "recall_itc": 0.5}
    overrides = [f"run.seed={seed}", f"{KEY}{group}"]
    rows = {"foils": pack(score_N), "recall": pack(np.full(20, 0.5))}
    return {"seed": seed, "overrides": overrides, "numbers": numbers, "rows": rows, "training_cpu_s": group - 1.0}


def test_larger_groups_are_compared_with_smaller_ones_seed_by_seed() -> None:
    rng, records = np.random.default_rng(0), []
    for seed in range(4):
        easy_N = rng.random(200)
        records += [made_record(group, seed, (easy_N < share).astype(float)) for group, share in ((16, 0.6), (64, 0.8))]
    records.append(made_record(256, 0, np.ones(200)))
    lines = tables(records).splitlines()
    assert lines[2].startswith("| 15 | 4 | ") and lines[2].endswith(" | 50.0 (0.0) | 15 |")
    assert lines[4] == "| 255 | 1 | 100.0 | 50.0 | 255 |"
    compared = [line for line in lines if "candidates |" in line][1:]
    assert [line.split(" | ")[:2] for line in compared] == [
        ["| 63 − 15 candidates", "foils"],
        ["| 63 − 15 candidates", "mean recall"],
    ], "a single seed with 255 candidates is compared with nothing"
    difference = float(compared[0].split(" | ")[2])
    assert difference == pytest.approx(20, abs=4) and "4 of 4" in compared[0]
    assert "| +0.0 | +0.0 to +0.0 |" in compared[1]


@pytest.mark.campaign
def test_cells_of_a_seed_differ_only_in_their_group(tmp_path: Path) -> None:
    found = list(plans([3], tmp_path))
    assert len({planned.run for planned in found}) == len({planned.settings for planned in found}) == len(GROUPS)
    configs = [load_config(planned.toml, planned.words) for planned in found]
    assert [config.objectives.group(config.train.global_batch) for config in configs] == list(GROUPS)
    same = [f"{KEY}{GROUPS[0]}", "run.dir=x"]
    assert len({repr(load_config(planned.toml, [*planned.words, *same])) for planned in found}) == 1
