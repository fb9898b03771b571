"""`train.micro_batch = "auto"`: bounded by memory, and kept when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.errors import UserError
from mvlm.training import auto_batch
from mvlm.training.auto_batch import first_that_fits
from tests.training.conftest import TrainHere, losses_by_step

AUTO = "train.micro_batch=auto"


def described(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


@pytest.mark.campaign
def test_auto_is_bounded_by_memory_and_kept(
    train_here: TrainHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    measured = auto_batch._measured

    def noted(trial: auto_batch.Trial, pairs: int) -> int:
        asked.append(measured(trial, pairs))
        return asked[-1]

    monkeypatch.setattr(auto_batch, "_measured", noted)
    whole = tmp_path / "whole"
    assert train_here(whole, AUTO, "train.steps=1") == 0
    assert described(whole)["micro_batch"] == 16  # the whole global batch: a model of kilobytes

    one, two = asked
    assert one < two < 2 * one + 1000  # beside what grows with the pairs there are gradients
    parameters = described(whole)["parameters"]
    enough_for_eight = one + parameters * 12 + 10 * (two - one)  # sixteen need five times (two - one) more
    monkeypatch.setattr(auto_batch, "available_memory", lambda: enough_for_eight / auto_batch.HOST_SHARE)
    run = tmp_path / "run"
    assert train_here(run, AUTO, "train.steps=2") == 0
    assert (described(run)["micro_batch"], described(run)["accumulation"]) == (8, 2)

    monkeypatch.undo()
    asked.clear()
    assert train_here(run, AUTO, "train.steps=4") == 0
    assert described(run)["micro_batch"] == 8  # though there is room for more now
    given = tmp_path / "given"
    for steps in (2, 4):
        assert train_here(given, "train.micro_batch=8", f"train.steps={steps}") == 0
    assert losses_by_step(run) == losses_by_step(given)


def test_a_run_resumed_with_auto_replaces_the_size_that_it_was_given(train_here: TrainHere, tmp_path: Path) -> None:
    assert train_here(tmp_path / "run", "train.micro_batch=8", "train.steps=1") == 0
    assert train_here(tmp_path / "run", AUTO, "train.steps=2") == 0
    assert described(tmp_path / "run")["micro_batch"] == 16


def test_too_little_memory_for_one_pair_is_a_sentence(
    train_here: TrainHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_batch, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="not even 1 pair fit into the memory of every rank"):
        train_here(tmp_path / "run", AUTO)


def test_the_largest_size_that_does_not_run_out_of_memory_is_taken() -> None:
    tried = []

    def attempt(pairs: int) -> None:
        tried.append(pairs)
        if pairs > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert first_that_fits(attempt, [4, 8, 16, 32, 64]) == 16
    assert tried == [64, 32, 16]
    with pytest.raises(UserError, match="not even 32 pairs"):
        first_that_fits(attempt, [32, 64])
