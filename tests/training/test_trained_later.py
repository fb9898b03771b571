"""A part that is trained only from a later stage on gets AdamW's updates of its own count."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mvlm.checkpoint.description import SKIPPED
from mvlm.checkpoint.integrity import read_state
from mvlm.checkpoint.layout import LATEST
from mvlm.checkpoint.tensors import open_tensors
from mvlm.config.load import load_stored_config
from tests.training.conftest import FLAT, Staged, leave_out, losses_by_step, stage

STAGES = stage("train.steps = 2", "train.freeze = ['vision']") + stage("train.steps = 4")
WORDS = [*FLAT, "checkpoint.every=1", "checkpoint.keep=9", "optim.eps=1e-15", "optim.encoder_lr=1e-3"]
LATER, ALWAYS = "vision.vit.blocks.0.mlp.fc1", "text.model.encoder.layer.0.attention.self.query"


def at_step(run: Path, step: int, kind: str, title: str) -> Tensor:
    with open_tensors(run / f"checkpoints/step_{step:08d}", kind) as tensors:
        return tensors[title].part(0, math.prod(tensors[title].shape)).double()


def expected_update(run: Path, step: int, name: str, count: int) -> Tensor:
    """By AdamW's formula in float64, of moments that come from `count` updates (arXiv 1711.05101, algorithm 2)."""
    optim = load_stored_config(run / "config.toml").optim
    first, second = (at_step(run, step, "moments", f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq"))
    first, second = first / (1 - optim.betas[0] ** count), second / (1 - optim.betas[1] ** count)
    decay = optim.weight_decay if name.endswith("weight") else 0.0
    return -optim.encoder_lr * (first / second.sqrt() + decay * at_step(run, step - 1, "weights", name))


@pytest.mark.parametrize("zero", [1, 3])
def test_updates_are_those_of_its_own_count_also_after_a_resume_and_a_step_back(
    staged: Staged, scenes: Path, tmp_path: Path, poison: Callable[..., None], zero: int
) -> None:
    leave_out(tmp_path / "run", 64)
    run = staged("run", STAGES, *WORDS, zero=zero)
    state = read_state(run / "checkpoints/step_00000006")
    assert (state.frozen, state.frozen_until, state.updates) == ((), {"vision": 2}, 6)
    for step in range(3, 7):
        for name, count in ((LATER, step - 2), (ALWAYS, step)):
            for title in (f"{name}.weight", f"{name}.bias"):
                found = at_step(run, step, "weights", title) - at_step(run, step - 1, "weights", title)
                torch.testing.assert_close(found, expected_update(run, step, title, count), rtol=2e-3, atol=2e-7)
    copy = tmp_path / "again"
    shutil.copytree(run, copy)
    for step in (4, 5, 6):
        shutil.rmtree(copy / f"checkpoints/step_{step:08d}")
    (copy / "checkpoints" / LATEST).write_text("step_00000003")
    (copy / SKIPPED).unlink()
    poison({64: math.nan})
    staged("again", STAGES, *WORDS, zero=zero)
    assert '"position": 64' in (copy / SKIPPED).read_text()
    assert losses_by_step(copy) == losses_by_step(run)
    for name in (LATER, ALWAYS):
        assert torch.equal(*(at_step(each, 6, "weights", f"{name}.weight") for each in (run, copy)))
