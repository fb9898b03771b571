"""What a run does about bad batches, the clock and later attempts, without losing any work."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM
from mvlm.training.engine import Engine
from mvlm.training.health import anomaly
from mvlm.training.health.signals import StopRequests
from tests.conftest import signals_kept
from tests.training.conftest import StopAfter, TrainHere, leave_out, losses_by_step, read_metrics, train_in

BATCH = 16
SHORT = ("train.steps=10", "checkpoint.every=4")


@pytest.fixture(scope="module")
def plain(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing befalls."""
    place = tmp_path_factory.mktemp("plain")
    with signals_kept():
        assert train_in(place, scenes, place / "run") == 0
    return place / "run"


@pytest.fixture(scope="module")
def clean(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaves out the sixth batch from the start."""
    place = tmp_path_factory.mktemp("clean")
    leave_out(place / "run", 5 * BATCH)
    with signals_kept():
        assert train_in(place, scenes, place / "run", *SHORT) == 0
    return place / "run"


def skipped(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / SKIPPED).read_text().splitlines()]


def test_a_spike_is_rolled_back_and_its_batch_left_out(
    clean: Path,
    tmp_path: Path,
    train_here: TrainHere,
    poison: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anomaly, "ENOUGH", 1)
    poison({5 * BATCH: 50.0})
    run = tmp_path / "run"
    assert train_here(run, *SHORT) == 0
    (line,) = skipped(run)
    assert (line["step"], line["position"]) == (6, 5 * BATCH)
    assert len({sample["key"] for sample in line["samples"]}) == BATCH
    assert losses_by_step(run) == losses_by_step(clean)
    assert list(losses_by_step(run)) == list(range(1, 11))
    state = json.loads((find_checkpoint(run) / "state.json").read_text())
    assert (state["step"], state["samples_seen"], state["skipped"]) == (10, 11 * BATCH, [5 * BATCH])


def test_losses_that_are_not_finite_are_left_out_before_the_first_checkpoint_and_after(
    tmp_path: Path, train_here: TrainHere, poison: Callable[..., None]
) -> None:
    leave_out(tmp_path / "clean", 0, 2 * BATCH, 7 * BATCH)
    deepspeed = {"zero_optimization": {"stage": 2}}
    assert train_here(tmp_path / "clean", *SHORT, deepspeed=deepspeed) == 0
    poison({0: math.inf, 2 * BATCH: math.nan, 7 * BATCH: math.nan})
    assert train_here(tmp_path / "run", *SHORT, deepspeed=deepspeed) == 0
    assert losses_by_step(tmp_path / "run") == losses_by_step(tmp_path / "clean")
    assert [line["step"] for line in skipped(tmp_path / "run")] == [1, 2, 6]


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is(
    tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = MaskVLM.forward

    def poisoned(self, batch, *beside):
        losses = forward(self, batch, *beside)
        if not batch.position_B.is_meta and (batch.position_B == 3 * BATCH).any():
            losses["itm"].register_hook(lambda gradient: gradient * math.nan)
        return losses

    monkeypatch.setattr(MaskVLM, "forward", poisoned)
    assert train_here(tmp_path / "run", "checkpoint.every=2") == 0
    (line,) = skipped(tmp_path / "run")
    assert line["position"] == 3 * BATCH
    assert "gradient" in line["reason"]


def test_a_run_that_meets_only_bad_batches_gives_up_with_their_list(
    tmp_path: Path, train_here: TrainHere, poison: Callable[..., None]
) -> None:
    poison({at * BATCH: math.nan for at in range(5, 20)})
    with pytest.raises(UserError, match=rf"max_skipped = 2 .*{SKIPPED}"):
        train_here(tmp_path / "run", *SHORT, "train.max_skipped=2")
    assert [line["position"] for line in skipped(tmp_path / "run")] == [at * BATCH for at in range(5, 8)]
    assert find_checkpoint(tmp_path / "run").name == "step_00000004"


def test_a_bad_step_is_not_saved_when_the_run_is_stopped_on_it(
    clean: Path, tmp_path: Path, train_here: TrainHere, poison: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    poison({5 * BATCH: math.nan})
    assert train_here(run, *SHORT, stop=StopAfter(run, 6)) == 75
    assert find_checkpoint(run).name == "step_00000004"
    assert train_here(run, *SHORT) == 0
    assert losses_by_step(run) == losses_by_step(clean)


def test_a_run_ends_before_its_time_does(
    tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = tmp_path / "run", Engine.step
    monkeypatch.setattr(Engine, "step", lambda *given: time.sleep(1) or step(*given))
    assert train_here(run, "train.steps=100000", "train.time_limit=0.25") == 75  # some seconds go to starting
    reached = read_metrics(run)[-1]["step"]
    assert 0 < reached < 100000
    assert find_checkpoint(run).name == f"step_{reached:08d}"


def test_a_run_ends_before_an_evaluation_for_which_its_time_is_too_short(tmp_path: Path, train_here: TrainHere) -> None:
    run, stop, began = tmp_path / "run", StopRequests(), time.monotonic()

    def take_half_of_what_is_left(
        model: torch.nn.Module, folder: Path, step: int, last: bool
    ) -> tuple[dict[str, float], None]:
        time.sleep(3)
        stop.limit_time((time.monotonic() - began + 3) / 60)
        return {}, None

    assert train_here(run, "train.steps=8", "eval.every=2", evaluate=take_half_of_what_is_left, stop=stop) == 75
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 2]


def test_a_later_attempt_ends_this_one_without_another_write(tmp_path: Path, train_here: TrainHere) -> None:
    run, before = tmp_path / "run", []

    def begin_another(model: torch.nn.Module, folder: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        before.append(find_checkpoint(folder).name)  # that of step 4 if the disk was quick enough
        (folder / "attempts" / "0002.json").touch()
        return {}, None

    with pytest.raises(UserError, match=r"attempt 1 ends at step 6"):
        train_here(run, *SHORT, "eval.every=6", evaluate=begin_another)
    assert [find_checkpoint(run).name] == before
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_every_operation_has_a_deterministic_form_on_the_cpu(
    plain: Path, tmp_path: Path, train_here: TrainHere
) -> None:
    """Torch would refuse one that has none."""
    torch.use_deterministic_algorithms(True)
    try:
        assert train_here(tmp_path / "run") == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses_by_step(tmp_path / "run") == losses_by_step(plain)


def test_metrics_say_how_ranks_differ(plain: Path) -> None:
    for line in read_metrics(plain):
        for name in ("step_s", "data_wait_s"):
            low, middle, high = (line[f"{name}_{kind}"] for kind in ("min", "median", "max"))
            assert 0 <= low <= middle <= high
        assert line["step_s_max"] == pytest.approx(16 / line["pairs_per_s"])
