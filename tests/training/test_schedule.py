"""The learning rate against its formula."""

import math

import pytest

from mvlm.config.load import load_config
from mvlm.training.schedule import Schedule, lr_factor, schedule_steps
from tests.conftest import ROOT


def test_warm_up_is_linear_and_its_first_update_already_moves() -> None:
    assert [lr_factor(step, 4, 100, 0.1) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_a_cosine_follows() -> None:
    warmup, total, floor = 10, 111, 0.1
    for step in range(warmup, total):
        angle = math.pi * (step - 10) / 100
        assert lr_factor(step, warmup, total, floor) == pytest.approx(0.1 + 0.9 * (math.cos(angle) + 1) / 2)
    assert lr_factor(60, warmup, total, floor) == pytest.approx(0.55)  # half way


@pytest.mark.parametrize(("warmup", "total"), [(0, 50), (10, 50), (49, 50), (0, 2), (1, 3)])
def test_the_floor_is_reached_at_the_last_update(warmup: int, total: int) -> None:
    factors = [lr_factor(step, warmup, total, 0.2) for step in range(total)]
    if warmup < total - 1:
        assert factors[-1] == pytest.approx(0.2)
    assert min(factors) > 0
    assert max(factors) == 1.0
    peak = factors.index(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_one_update_alone_is_at_the_peak() -> None:
    assert lr_factor(0, 0, 1, 0.1) == 1.0


@pytest.mark.parametrize(
    ("overrides", "rows", "expected"),
    [
        (["train.epochs=30", "train.global_batch=100", "optim.warmup_epochs=5"], 1000, (300, 50)),
        (["train.epochs=2", "train.global_batch=100", "optim.warmup_epochs=0.5"], 1010, (21, 5)),
        (["train.steps=70", "train.global_batch=100", "optim.warmup_epochs=5"], 1000, (70, 50)),
        (["train.steps=70", "optim.warmup_steps=7"], 1000, (70, 7)),
        (["train.steps=5", "optim.warmup_steps=100"], 1000, (5, 4)),  # the peak is reached all the same
        (["train.steps=1", "optim.warmup_steps=0"], 1000, (1, 0)),
    ],
)
def test_epochs_become_steps(overrides: list[str], rows: int, expected: tuple[int, int]) -> None:
    config = load_config(ROOT / "mvlm/configs/tiny.toml", overrides)
    assert schedule_steps(config.train, config.optim, rows) == expected


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6, 9, 10]), (5, [5, 10]), (0, [10])])
def test_what_is_due_every_so_often_is_due_after_the_last_step(every: int, steps: list[int]) -> None:
    schedule = Schedule(10, 2, 0.1, log_every=1, save_every=every, eval_every=0)
    assert [step for step in range(1, 11) if schedule.is_due(schedule.save_every, step)] == steps
