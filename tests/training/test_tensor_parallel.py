"""Layers split among ranks train as whole ones do, and every layout reads their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvlm.checkpoint.layout import CHECKPOINTS, EMA, MOMENTS, WEIGHTS
from mvlm.checkpoint.tensors import open_tensors
from tests.ranks import run_ranks
from tests.training.split_worker import resume_across, train_split
from tests.training.test_parity import check_first_steps, check_histories, told

LAYOUTS = [(0, 1), (1, 2), (2, 1)]
"""ZeRO stage, and micro-batches a step."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, LAYOUTS[:1]), id="a replica"),
        pytest.param((4, LAYOUTS), id="two replicas", marks=pytest.mark.campaign),
    ],
)
def histories(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Of replicas of two ranks each."""
    ranks, layouts = request.param
    found = told(ranks, train_split, scenes, tmp_path_factory.mktemp("split"), 2, layouts)
    return found | {"layouts": len(layouts)}


def test_replicas_of_two_ranks_train_as_the_plain_loop_does(histories: dict) -> None:
    check_histories(histories)


def test_the_first_step_is_the_oracles_pair_by_pair(histories: dict) -> None:
    check_first_steps(histories, bound=1e-5)


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        pytest.param(2, [(2, 1), (1, 0)], id="a replica"),
        pytest.param(4, [(2, 1), (1, 2), (2, 0), (1, 3)], id="two replicas", marks=pytest.mark.campaign),
    ],
)
def test_a_checkpoint_of_any_layout_is_resumed_in_any_other(
    ranks: int, layouts: list[tuple[int, int]], scenes: Path, tmp_path: Path
) -> None:
    """Layouts are ranks of a replica and a ZeRO stage; each resumes from what the one before it has saved."""
    done = run_ranks(resume_across, str(scenes), tmp_path, layouts, ranks=ranks, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = torch.load(tmp_path / "told.pt")
    sent, planned = found["sums"]
    assert sent == planned and sent[1] > 10
    loss, after = found["first"]
    for whole, (next_loss, next_whole) in found["resumed"]:
        torch.testing.assert_close(whole, found["saved"], rtol=0, atol=0)
        assert next_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(next_whole, after, rtol=1e-3, atol=1e-5)
    assert len(found["resumed"]) == len(layouts) - 1
    for folder in ("first", *(f"again-{number}" for number in range(len(layouts) - 1))):  # read by this process alone
        (checkpoint,) = (tmp_path / folder / CHECKPOINTS).glob("step_*")
        for kind, key in ((WEIGHTS, "weight"), (EMA, EMA), (MOMENTS, "exp_avg")):
            with open_tensors(checkpoint, kind) as tensors:
                titles = {t.rpartition("/")[2]: t for t in tensors if kind != MOMENTS or t.startswith("exp_avg/")}
                assert titles.keys() == {name for name, whole in found["saved"].items() if key in whole}
                for name, title in titles.items():
                    torch.testing.assert_close(tensors[title].tensor(), found["saved"][name][key], rtol=0, atol=0)
