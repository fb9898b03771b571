"""A run warns once if image-text matching stays at chance, and never if it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mvlm.training.health import matching
from mvlm.training.health.matching import GUESS, MatchingWatch
from tests.training.conftest import TrainHere


def warned_at(loss_at: Callable[[int], float], every: int, updates: int) -> list[int]:
    """The steps at which there is a warning."""
    watch = MatchingWatch()
    return [step for step in range(every, updates + 1, every) if watch.judge(step, loss_at(step))]


def test_the_loss_of_a_guess_is_that_of_the_best_constant_prediction() -> None:
    constant = torch.tensor([2 / 3, 1 / 3], dtype=torch.float64).log().expand(3, 2)
    assert pytest.approx(F.cross_entropy(constant, torch.tensor([1, 0, 0])).item(), abs=1e-12) == GUESS


@pytest.mark.parametrize(("every", "at"), [(1, 1_001), (50, 1_050), (100, 1_100), (400, 4_000)])
def test_chance_is_warned_of_once_however_often_metrics_are_logged(every: int, at: int) -> None:
    assert warned_at(lambda step: 0.63 + 0.01 * (step % 3), every, 6_000) == [at]


@pytest.mark.parametrize(
    "loss_at",
    [lambda step: 0.55, lambda step: max(0.3, 0.7 - 0.1 * step / 500), lambda step: math.nan],
    ids=["has learned", "is learning", "NaN"],
)
def test_there_is_no_warning_of_anything_else(loss_at: Callable[[int], float]) -> None:
    assert warned_at(loss_at, 50, 6_000) == []


def test_matching_that_has_been_unlearned_is_warned_of() -> None:
    assert warned_at(lambda step: 0.5 if step < 3_000 else 0.64, 50, 6_000)


@pytest.mark.parametrize("negatives", ["hard", "uniform"])
def test_a_run_warns_only_if_its_negatives_are_hard(
    train_here: TrainHere,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    negatives: str,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(matching, "UPDATES", 2)
    monkeypatch.setattr(matching, "READINGS", 2)
    monkeypatch.setattr(matching, "LEARNED", 0.0)
    train_here(tmp_path / "run", "train.steps=5", "log.every=1", f"objectives.itm_negatives={negatives}")
    assert capfd.readouterr().err.count("ITM has learned nothing in 2 updates") == (negatives == "hard")
