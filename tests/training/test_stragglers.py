"""The spread of step times over two real ranks."""

from __future__ import annotations

import json
from pathlib import Path

from mvlm.runtime import dist
from mvlm.training.logging.metrics import spread
from tests.ranks import run_ranks

MEASURED = [(0.50, 0.01, 0.20), (0.52, 0.25, 0.02)]
"""Of each rank: rank 1 reads slowly, and rank 0 waits for it."""


def measure(folder: Path) -> None:
    dist.init()
    (folder / f"{dist.rank()}.json").write_text(json.dumps(spread(*MEASURED[dist.rank()])))
    dist.close()


def test_every_rank_learns_the_spread_and_which_rank_is_slow(tmp_path: Path) -> None:
    done = run_ranks(measure, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    steps = {"step_s_min": 0.50, "step_s_median": 0.51, "step_s_max": 0.52}
    waits = {"data_wait_s_min": 0.01, "data_wait_s_median": 0.13, "data_wait_s_max": 0.25}
    assert first == steps | waits | {"slowest_rank": 1}


def test_the_spread_of_a_single_rank_is_its_own_times() -> None:
    metrics = spread(0.5, 0.1, 0.0)
    assert set(metrics.values()) == {0.5, 0.1, 0}
    assert metrics["slowest_rank"] == 0
