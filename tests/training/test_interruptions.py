"""Bad batches, the clock and later attempts: what a run does about them, and that it loses nothing by it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.load import given_keys, load_config
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM
from mvlm.training.fit.run import train
from mvlm.training.health.signals import StopRequests
from tests.conftest import TINY, signals_kept
from tests.training.conftest import TOML, TrainHere, leave_out, losses_by_step, read_metrics, train_in

STEPS = "train.steps=24"
EVERY = "checkpoint.every=4"
BATCH = 16


@pytest.fixture(scope="module")
def plain(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing befalls."""
    place = tmp_path_factory.mktemp("plain")
    with signals_kept():
        assert train_in(place, scenes, place / "run") == 0
    return place / "run"


@pytest.mark.parametrize(
    ("factor", "stage"),
    [(math.nan, 0), (50.0, 2), pytest.param(math.nan, 3, marks=pytest.mark.campaign)],
    ids=["nan-0", "spike-2", "nan-3"],
)
def test_a_bad_batch_is_left_out_as_if_it_had_never_been(
    tmp_path: Path, train_here: TrainHere, poison: Callable[..., None], factor: float, stage: int
) -> None:
    deepspeed = {"zero_optimization": {"stage": stage}}
    leave_out(tmp_path / "clean", 19 * BATCH)
    assert train_here(tmp_path / "clean", STEPS, EVERY, deepspeed=deepspeed) == 0
    poison({19 * BATCH: factor})
    run = tmp_path / "run"
    assert train_here(run, STEPS, EVERY, deepspeed=deepspeed) == 0
    (line,) = map(json.loads, (run / SKIPPED).read_text().splitlines())
    assert (line["step"], line["position"]) == (20, 19 * BATCH)
    assert len({sample["key"] for sample in line["samples"]}) == BATCH
    assert losses_by_step(run) == losses_by_step(tmp_path / "clean")
    assert list(losses_by_step(run)) == list(range(1, 25))
    state = json.loads((find_checkpoint(run) / "state.json").read_text())
    assert (state["step"], state["samples_seen"], state["skipped"]) == (24, 25 * BATCH, [19 * BATCH])


def test_it_is_left_out_before_the_first_checkpoint_too(
    tmp_path: Path, train_here: TrainHere, poison: Callable[..., None]
) -> None:
    leave_out(tmp_path / "clean", 0, 2 * BATCH)
    assert train_here(tmp_path / "clean") == 0
    poison({0: math.inf, 2 * BATCH: math.nan})
    assert train_here(tmp_path / "run") == 0
    assert losses_by_step(tmp_path / "run") == losses_by_step(tmp_path / "clean")


def test_a_gradient_that_is_no_number_is_found_though_the_loss_is_one(
    tmp_path: Path, train_here: TrainHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = MaskVLM.forward

    def poisoned(self, batch, *beside):
        losses = forward(self, batch, *beside)
        if not batch.position_B.is_meta and (batch.position_B == 3 * BATCH).any():
            losses["itm"].register_hook(lambda gradient: gradient * math.nan)
        return losses

    monkeypatch.setattr(MaskVLM, "forward", poisoned)
    assert train_here(tmp_path / "run", EVERY) == 0
    (line,) = map(json.loads, (tmp_path / "run" / SKIPPED).read_text().splitlines())
    assert line["position"] == 3 * BATCH
    assert "gradient" in line["reason"]


def test_a_run_that_meets_nothing_but_bad_batches_gives_up_with_the_list(
    tmp_path: Path, train_here: TrainHere, poison: Callable[..., None]
) -> None:
    poison({at * BATCH: math.nan for at in range(5, 20)})
    with pytest.raises(UserError, match=rf"max_skipped = 3 .*{SKIPPED}"):
        train_here(tmp_path / "run", STEPS, EVERY, "train.max_skipped=3")
    lines = [json.loads(line) for line in (tmp_path / "run" / SKIPPED).read_text().splitlines()]
    assert [line["position"] for line in lines] == [at * BATCH for at in range(5, 9)]
    assert find_checkpoint(tmp_path / "run").name == "step_00000004"


def test_a_bad_step_is_never_saved_when_the_run_is_stopped_on_it(
    tmp_path: Path, scenes: Path, train_here: TrainHere, poison: Callable[..., None]
) -> None:
    run = tmp_path / "run"

    class StopAt6:
        signalled = False
        limit_time = staticmethod(lambda minutes: None)
        orphaned = staticmethod(lambda: False)
        time_is_up = staticmethod(lambda *seconds: (run / "metrics.jsonl").read_text().count("\n") >= 6)

    poison({5 * BATCH: math.nan})
    words = [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=12", EVERY]
    (tmp_path / "ds.json").write_text("{}")
    assert (
        train(load_config(TOML, words), (str(tmp_path / "ds.json"), TOML), given_keys(TOML, words), stop=StopAt6())
        == 75
    )
    assert find_checkpoint(run).name == "step_00000004"
    assert train_here(run, "train.steps=12", EVERY) == 0
    leave_out(tmp_path / "clean", 5 * BATCH)
    assert train_here(tmp_path / "clean", "train.steps=12", EVERY) == 0
    assert losses_by_step(run) == losses_by_step(tmp_path / "clean")


def test_a_run_ends_before_its_time_does(tmp_path: Path, train_here: TrainHere) -> None:
    run = tmp_path / "run"
    assert train_here(run, "train.steps=100000", "train.time_limit=0.1") == 75
    step = read_metrics(run)[-1]["step"]
    assert 0 < step < 100000
    assert find_checkpoint(run).name == f"step_{step:08d}"


def test_a_run_ends_before_an_evaluation_for_which_its_time_is_too_short(
    tmp_path: Path, scenes: Path, one_rank: None, own_signals: None
) -> None:
    run, stop, began = tmp_path / "run", StopRequests(), time.monotonic()

    def take_half_of_what_is_left(
        model: torch.nn.Module, folder: Path, step: int, last: bool
    ) -> tuple[dict[str, float], None]:
        time.sleep(5)
        stop.limit_time((time.monotonic() - began + 5) / 60)
        return {}, None

    words = [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=8", "eval.every=2"]
    (tmp_path / "ds.json").write_text("{}")
    names, given = (str(tmp_path / "ds.json"), TOML), given_keys(TOML, words)
    assert train(load_config(TOML, words), names, given, lambda _: take_half_of_what_is_left, stop) == 75
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 2]


def test_a_later_attempt_ends_this_one_without_another_write(tmp_path: Path, scenes: Path, one_rank: None) -> None:
    run, before = tmp_path / "run", []

    def begin_another(model: torch.nn.Module, folder: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        before.append(find_checkpoint(folder).name)  # that of step 4, where the disk was quick enough
        (folder / "attempts" / "0002.json").touch()
        return {}, None

    words = [*TINY, f"data.train={scenes}/train", f"run.dir={run}", "train.steps=12", EVERY, "eval.every=6"]
    (tmp_path / "ds.json").write_text("{}")
    with pytest.raises(UserError, match=r"attempt 1 ends at step 6"):
        train(
            load_config(TOML, words),
            (str(tmp_path / "ds.json"), TOML),
            given_keys(TOML, words),
            lambda _: begin_another,
        )
    assert [find_checkpoint(run).name] == before
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_what_deterministic_asks_for_holds_on_the_cpu(plain: Path, tmp_path: Path, train_here: TrainHere) -> None:
    """Every operation of the model has a deterministic form, or torch would refuse it."""
    torch.use_deterministic_algorithms(True)
    try:
        assert train_here(tmp_path / "bound") == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses_by_step(tmp_path / "bound") == losses_by_step(plain)


def test_metrics_tell_how_ranks_differ(plain: Path) -> None:
    for line in read_metrics(plain):
        for name in ("step_s", "data_wait_s"):
            low, middle, high = (line[f"{name}_{kind}"] for kind in ("min", "median", "max"))
            assert 0 <= low <= middle <= high
        assert line["step_s_max"] == pytest.approx(16 / line["pairs_per_s"])
