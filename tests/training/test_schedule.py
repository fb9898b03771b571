"""Learning rates are those of formulas in the literature and of the schedulers in transformers."""

import dataclasses
import math

import pytest
import torch
from transformers import get_inverse_sqrt_schedule, get_wsd_schedule

from mvlm.checkpoint.state import TrainState
from mvlm.config.load import load_config
from mvlm.config.schema import Config
from mvlm.errors import UserError
from mvlm.training.schedule import LearningRate, Schedule, learning_rate, schedule_steps
from tests.training.conftest import TOML

COSINE = LearningRate("cosine", total=100, warmup=4, scale=4, decay=10, floor=0.1)


def cosine(step: int, warmup: int, total: int, floor: float) -> float:
    return dataclasses.replace(COSINE, total=total, warmup=warmup, floor=floor)(step)


def learning_rate_of(config: Config, samples: int, state: TrainState | None = None) -> LearningRate:
    steps = schedule_steps(config.train, config.optim, samples, state)
    return learning_rate(config.train, config.optim, samples, steps, state)


def rates_of_transformers(make: object, count: int, **settings: object) -> list[float]:
    """The rates of `count` updates, by a scheduler that steps after each."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **settings)  # type: ignore[operator]
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_warm_up_is_linear_and_its_first_rate_is_not_zero() -> None:
    assert [cosine(step, 4, 100, 0.1) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_the_warm_up_is_followed_by_a_cosine() -> None:
    warmup, total, floor = 10, 111, 0.1
    for step in range(warmup, total):
        angle = math.pi * (step - 10) / 100
        assert cosine(step, warmup, total, floor) == pytest.approx(0.1 + 0.9 * (math.cos(angle) + 1) / 2)
    assert cosine(60, warmup, total, floor) == pytest.approx(0.55)  # half way


@pytest.mark.parametrize(("warmup", "total"), [(0, 50), (10, 50), (49, 50), (0, 2), (1, 3)])
def test_the_floor_is_reached_at_the_last_update(warmup: int, total: int) -> None:
    factors = [cosine(step, warmup, total, 0.2) for step in range(total)]
    if warmup < total - 1:
        assert factors[-1] == pytest.approx(0.2)
    assert min(factors) > 0
    assert max(factors) == 1.0
    peak = factors.index(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_a_single_update_is_at_the_peak() -> None:
    assert cosine(0, 0, 1, 0.1) == 1.0


@pytest.mark.parametrize(
    ("overrides", "rows", "expected"),
    [
        (["train.epochs=30", "train.global_batch=100", "optim.warmup_epochs=5"], 1000, (300, 50)),
        (["train.epochs=2", "train.global_batch=100", "optim.warmup_epochs=0.5"], 1010, (21, 5)),
        (["train.epochs=1.1", "train.global_batch=10", "optim.warmup_steps=0"], 100, (11, 0)),  # 1.1 * 100 > 110
        (["train.steps=70", "train.global_batch=100", "optim.warmup_epochs=5"], 1000, (70, 50)),
        (["train.steps=70", "optim.warmup_steps=7"], 1000, (70, 7)),
        (["train.steps=5", "optim.warmup_steps=100"], 1000, (5, 4)),  # so that the peak is reached
        (["train.steps=1", "optim.warmup_steps=0"], 1000, (1, 0)),
        (["train.steps=70", "optim.warmup_steps=0"], 1000, (70, 0)),  # no warm-up, whatever warmup_epochs says
    ],
)
def test_epochs_become_steps(overrides: list[str], rows: int, expected: tuple[int, int]) -> None:
    config = load_config(TOML, overrides)
    assert schedule_steps(config.train, config.optim, rows) == expected


def test_a_run_whose_batch_has_changed_ends_with_its_epochs() -> None:
    words = ["train.epochs=1", "train.global_batch=17"]
    config = load_config(TOML, words)
    for step in range(58):
        state = TrainState(step=step, samples_seen=42 * step, seed=0, manifest_fingerprint="")
        steps, _ = schedule_steps(config.train, config.optim, 2460, state)
        assert steps == step - (42 * step - 2460) // 17


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6, 9, 10]), (5, [5, 10]), (0, [10])])
def test_periodic_work_is_also_due_after_the_last_step(every: int, steps: list[int]) -> None:
    schedule = Schedule(10, COSINE, log_every=1, save_every=every, keep_every=0, eval_every=0)
    assert [step for step in range(1, 11) if schedule.is_due(schedule.save_every, step)] == steps


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_wsd_is_that_of_transformers_after_the_warm_up(floor: float) -> None:
    own = dataclasses.replace(COSINE, kind="wsd", total=50, warmup=5, decay=20, floor=floor)
    spans = {"num_warmup_steps": 5, "num_stable_steps": 25, "num_decay_steps": 20}
    theirs = rates_of_transformers(get_wsd_schedule, 50, decay_type="1-sqrt", min_lr_ratio=floor, **spans)
    assert [own(step) for step in range(5, 50)] == pytest.approx(theirs[5:])
    if not floor:  # they apply the floor to the warm-up too
        assert [own(step) for step in range(4)] == pytest.approx(theirs[1:5])  # their first rate is 0


def test_the_warm_up_and_the_stable_phase_of_wsd_are_those_of_minicpm() -> None:
    """WSD(T; s) in arXiv 2404.06395 is s / W up to update W, counted from 1, and then 1 up to update T."""
    own = dataclasses.replace(COSINE, kind="wsd", total=100, warmup=8, decay=10, floor=0.0)
    assert [own(s - 1) for s in range(1, 91)] == pytest.approx([min(1.0, s / 8) for s in range(1, 91)])
    assert own(90) == 1.0 > own(91) > own(99) > own(100) == 0.0


def test_the_inverse_square_root_is_that_of_transformers_after_the_warm_up() -> None:
    own = dataclasses.replace(COSINE, kind="inverse_sqrt", total=200, warmup=16, scale=16)
    theirs = rates_of_transformers(get_inverse_sqrt_schedule, 200, num_warmup_steps=16)
    assert [own(step) for step in range(16, 200)] == pytest.approx(theirs[16:])
    assert own(64) == pytest.approx(0.5)  # four times the warm-up


def test_a_constant_rate_stays_at_the_peak() -> None:
    own = dataclasses.replace(COSINE, kind="constant", total=100, warmup=4)
    assert [own(step) for step in (0, 3, 4, 50, 99)] == [0.25, 1, 1, 1, 1]


def test_the_decay_of_wsd_begins_as_configured_and_never_within_the_warm_up() -> None:
    words = ["optim.schedule=wsd", "optim.warmup_steps=10", "train.steps=100", "train.global_batch=100"]
    assert learning_rate_of(load_config(TOML, words), 1000).decay == 10
    undecayed = learning_rate_of(load_config(TOML, [*words, "optim.decay_steps=0"]), 1000)
    assert {undecayed(step) for step in range(10, 100)} == {1.0}
    longer = learning_rate_of(load_config(TOML, [*words, "optim.decay_steps=500"]), 1000)
    assert longer(9) == longer(10) == 1.0 > longer(11)


def test_an_inverse_square_root_depends_on_samples_when_the_batch_changes() -> None:
    """The batch is halved at 4,000 samples, after a warm-up of 1,000: rates are equal at equal numbers of samples."""
    words = ["train.epochs=10", "optim.warmup_epochs=1", "optim.schedule=inverse_sqrt"]
    before = learning_rate_of(load_config(TOML, [*words, "train.global_batch=20"]), 1000)
    halved = load_config(TOML, [*words, "train.global_batch=10"])
    after = learning_rate_of(halved, 1000, TrainState(step=200, samples_seen=4000, seed=0, manifest_fingerprint=""))
    assert [after(200 + 2 * more) for more in range(100)] == pytest.approx([before(200 + more) for more in range(100)])


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd", "inverse_sqrt"])
@pytest.mark.parametrize("batch", [5, 20])
def test_a_warm_up_depends_on_samples_when_the_batch_changes(schedule: str, batch: int) -> None:
    """The batch changes halfway through a warm-up of 2,000 samples."""
    words = ["train.epochs=10", "optim.warmup_epochs=2", f"optim.schedule={schedule}"]
    before = learning_rate_of(load_config(TOML, [*words, "train.global_batch=10"]), 1000)
    changed = load_config(TOML, [*words, f"train.global_batch={batch}"])
    after = learning_rate_of(changed, 1000, TrainState(step=100, samples_seen=1000, seed=0, manifest_fingerprint=""))
    assert before(99) == pytest.approx(0.5)
    seen = [1000 + batch * (more + 1) for more in range(1000 // batch)]
    assert [after(100 + more) for more in range(1000 // batch)] == pytest.approx([samples / 2000 for samples in seen])


def test_rates_rise_even_if_bad_batches_were_left_out_before_the_batch_grew() -> None:
    grown = load_config(TOML, ["train.global_batch=1000", "optim.warmup_epochs=2"])
    rate = learning_rate_of(
        grown, 4000, TrainState(step=10, samples_seen=150, seed=0, manifest_fingerprint="", skipped=(3, 4, 5, 6, 7))
    )
    assert 0 < rate(10) < rate(11) < 1


@pytest.mark.parametrize("warmup", ["optim.warmup_steps=0", "optim.warmup_epochs=0"])
def test_an_inverse_square_root_needs_a_warm_up(warmup: str) -> None:
    with pytest.raises(UserError, match=r"optim.schedule is 'inverse_sqrt': it must be another without a warm-up"):
        load_config(TOML, ["optim.schedule=inverse_sqrt", warmup])
