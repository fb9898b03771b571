"""Layers that ranks split train as whole ones do, and every layout reads their checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvlm.checkpoint.layout import CHECKPOINTS, EMA, MOMENTS, WEIGHTS
from mvlm.checkpoint.tensors import open_tensors
from tests.ranks import run_ranks
from tests.training.split_worker import resume_across, train_split
from tests.training.test_parity import check_first_steps, check_histories, histories_of

LAYOUTS = [(0, 1), (1, 2), (2, 1)]
"""ZeRO stages, and the micro-batches of a step."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((2, LAYOUTS[:1]), id="a replica"),
        pytest.param((4, LAYOUTS), id="two replicas", marks=pytest.mark.campaign),
    ],
)
def histories(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The histories of replicas of two ranks each."""
    ranks, layouts = request.param
    found = histories_of(ranks, train_split, scenes, tmp_path_factory.mktemp("split"), 2, layouts)
    return found | {"layouts": len(layouts)}


def test_replicas_of_two_ranks_train_as_the_plain_loop_does(histories: dict) -> None:
    check_histories(histories)


def test_the_first_step_is_that_of_the_oracle_pair_by_pair(histories: dict) -> None:
    check_first_steps(histories, bound=1e-5)


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        pytest.param(2, [(2, 1), (1, 0)], id="a replica"),
        pytest.param(4, [(2, 1), (1, 2), (2, 0), (1, 3)], id="two replicas", marks=pytest.mark.campaign),
    ],
)
def test_each_layout_resumes_the_checkpoint_of_the_one_before(
    ranks: int, layouts: list[tuple[int, int]], scenes: Path, tmp_path: Path
) -> None:
    """A layout is the number of ranks of a replica and a ZeRO stage. One process alone can read every checkpoint."""
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
    for folder in ("first", *(f"again-{number}" for number in range(len(layouts) - 1))):
        (checkpoint,) = (tmp_path / folder / CHECKPOINTS).glob("step_*")
        check_checkpoint(checkpoint, found["saved"])


def check_checkpoint(checkpoint: Path, saved: dict[str, dict[str, torch.Tensor]]) -> None:
    """Compare its tensors in every bit with those of the engine that saved it."""
    for kind, key in ((WEIGHTS, "weight"), (EMA, EMA), (MOMENTS, "exp_avg")):
        with open_tensors(checkpoint, kind) as tensors:
            titles = {t.rpartition("/")[2]: t for t in tensors if kind != MOMENTS or t.startswith("exp_avg/")}
            assert titles.keys() == {name for name, whole in saved.items() if key in whole}
            for name, title in titles.items():
                torch.testing.assert_close(tensors[title].tensor(), saved[name][key], rtol=0, atol=0)
