"""The comparison of orders on runs of near-duplicates: tables of cells, and the corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.claim.scores import pack
from benchmarks.claim.world import scenes
from benchmarks.shuffle.compare import KEY, ORDERS, tables
from benchmarks.shuffle.runs import PHRASES, records
from data_tools.pipeline import Options
from data_tools.sharding import shard
from data_tools.synth.scenes import describe
from mvlm.data.shards.mixture import Mixture

SHARES = (0.6, 0.8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "runs"
    shard(records(scenes()[:100]), out, Options(workers=1))
    return out


def made_record(order: str, seed: int, score_N: np.ndarray) -> dict[str, object]:
    overrides = [f"run.seed={seed}", f"{KEY}{order}"]
    rows = {"foils": pack(score_N), "recall": pack(np.full(20, 0.5))}
    return {"seed": seed, "overrides": overrides, "numbers": {"foils_itm": float(score_N.mean())}, "rows": rows}


def test_the_global_shuffle_is_compared_with_blocks_seed_by_seed(runs: Path) -> None:
    rng, made = np.random.default_rng(0), []
    for seed in range(4):
        easy_N = rng.random(200)
        made += [
            made_record(order, seed, (easy_N < share).astype(float))
            for order, share in zip(ORDERS, SHARES, strict=True)
        ]
    lines = tables(made, str(runs)).splitlines()
    blocks, shuffled = (line.split(" | ") for line in lines[2:4])
    assert (blocks[0], shuffled[0], blocks[2]) == ("| blocks", "| global", "4")
    assert float(blocks[1].split()[0]) > float(shuffled[1].split()[0])
    (compared,) = (line for line in lines if line.startswith("| global − blocks | foils"))
    assert float(compared.split(" | ")[2]) == pytest.approx(20, abs=4) and "4 of 4" in compared


def test_a_run_of_near_duplicates_shows_one_scene_with_varied_pixels_and_words(runs: Path) -> None:
    mixture = Mixture([str(runs)])
    for scene, first in zip(scenes()[:100], range(0, len(mixture), len(PHRASES)), strict=True):
        rows = [mixture.row(row) for row in range(first, first + len(PHRASES))]
        assert rows[0].captions == [describe(scene)]
        assert len({row.captions[0] for row in rows}) == len({bytes(row.image) for row in rows}) == len(PHRASES)
        things = describe(scene).split(", ")
        assert all(thing in row.captions[0] for row in rows for thing in things)
