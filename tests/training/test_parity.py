"""A global batch trains as a plain torch loop does, whatever the ranks, the accumulation and the ZeRO stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.training.gradient_norms import PARTS
from tests.ranks import run_ranks
from tests.training.gradient_matrix import EXACT
from tests.training.parity_worker import train_layouts, train_stages

WHOLE: dict[str, Any] = {"short": False, "layouts": 5, "switches": 14}
SHORT: dict[str, Any] = {"short": True, "ranks": 2, "layouts": 2, "switches": 1}
RANKS = [
    pytest.param(SHORT, id="2 ranks, short"),
    *(pytest.param(WHOLE | {"ranks": ranks}, id=f"{ranks} ranks", marks=pytest.mark.campaign) for ranks in (1, 2, 4)),
]


def histories_of(ranks: int, worker: Callable[..., None], scenes: Path, folder: Path, *words: object) -> dict:
    """What a worker writes to its file."""
    file = folder / "histories.json"
    done = run_ranks(worker, str(scenes), file, *words, ranks=ranks, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.fixture(scope="module", params=RANKS)
def histories(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The ITM group is the whole global batch: it spans the ranks and, with accumulation, their micro-batches."""
    case = request.param
    folder = tmp_path_factory.mktemp("parity")
    return histories_of(case["ranks"], train_layouts, scenes, folder, case["short"]) | case


def test_every_layout_trains_as_the_plain_loop_does(histories: dict) -> None:
    check_histories(histories)


@pytest.mark.campaign
def test_the_first_step_of_sixteen_ranks_with_a_pair_each_is_the_oracles(scenes: Path, tmp_path: Path) -> None:
    """The bound is wider, since more cancels in the sum of sixteen single pairs than in that of a few micro-batches."""
    check_first_steps(histories_of(16, train_stages, scenes, tmp_path, 1), bound=2e-5)


def test_the_first_step_of_every_layout_is_the_oracles_pair_by_pair(histories: dict) -> None:
    check_first_steps(histories, bound=1e-5)


def by_layout(histories: dict) -> dict[str, dict]:
    layouts = {name: history for name, history in histories.items() if name.startswith("zero")}
    assert layouts
    return layouts


def check_histories(histories: dict) -> None:
    """Compare all steps of every layout with the plain loop's."""
    plain, layouts = histories["plain"], by_layout(histories)
    assert len(layouts) == histories["layouts"]
    for layout, history in layouts.items():
        assert history.keys() - {"gradient_errors"} == plain.keys()
        for name in plain:
            found, expected = (torch.tensor(h[name], dtype=torch.float64) for h in (history, plain))
            message = f"{name} of {layout}"
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5, msg=lambda m, s=message: f"{s}: {m}")


def check_first_steps(histories: dict, bound: float) -> None:
    """Compare the losses and gradients of every layout's first step with the oracle's."""
    for layout, history in by_layout(histories).items():
        for name, loss in histories["reference"].items():
            assert history[name][0] == pytest.approx(loss, rel=1e-5), f"{name} of {layout}"
        errors = history["gradient_errors"]
        assert len(errors) > 60
        assert max(errors.values()) < bound, f"{layout}: {max(errors, key=errors.get)}"


def test_plain_passes_have_the_losses_and_gradients_of_the_pruned_ones_under_zero_3(histories: dict) -> None:
    assert len(histories["passes"]) == histories["switches"]
    for switch, errors in histories["passes"].items():
        assert len(errors) > 60
        assert max(errors.values()) < EXACT, f"{switch}: {max(errors, key=errors.get)}"


def test_gradients_are_those_of_autograd_under_every_pair_of_options(histories: dict) -> None:
    """Covers the rows of the matrix for this number of ranks; tests/training/test_gradients.py has the others."""
    assert len(histories["matrix"]) >= 4 or histories["ranks"] > 2
    for row, (parameter, error) in histories["matrix"].items():
        assert error < EXACT, f"{parameter} of {row}"


def test_metrics_other_than_losses_are_plausible(histories: dict) -> None:
    plain = histories["plain"]
    norms = [plain[f"grad_norms/{part}"] for part in PARTS]
    for step, norm in enumerate(plain["grad_norm"]):
        assert sum(of_part[step] ** 2 for of_part in norms) == pytest.approx(norm**2)
    assert min(min(of_part) for of_part in norms) > 0
    assert 0 < plain["itm_accuracy"][0] < 1
    assert plain["word_accuracy"][-1] > 0
    assert len(set(plain["temperature"])) == len(plain["temperature"])


def test_the_plain_loop_learns(histories: dict) -> None:
    """If it did not, equal losses would prove little."""
    first, *_, last = histories["plain"]["text"]
    assert last < first - 0.1
