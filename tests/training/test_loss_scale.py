"""fp16's dynamic loss scale does not change gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from tests.training.parity_worker import built, configuration, engine_of, steps_of
from tests.training.saved_tensors import whole_tensors


@pytest.mark.parametrize("stage", [1, 3])
def test_the_update_after_which_the_scale_doubles_is_like_any_other(
    one_rank: None, scenes: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """DeepSpeed on its own would divide the gradients of that update by the doubled scale."""
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
    fp16 = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 10}
    content = {"fp16": fp16, "zero_optimization": {"stage": stage}}
    found = []
    for good_steps in (9, 10):
        config = configuration(str(scenes), 16)
        model, loader = built(config, 0, 1)
        engine = engine_of(model, config, content, 1)
        state = engine.loss_scale_state()
        assert state
        engine.set_loss_scale_state(state | {"cur_iter": good_steps, "last_overflow_iter": -1})
        engine.step(steps_of(loader)[0], 0.5, 0)
        moments = torch.cat([whole["exp_avg"].flatten() for _, whole in whole_tensors(engine)])
        assert engine.grad_norm is not None
        found.append((engine.loss_scale_state(), float(engine.grad_norm), moments))
    (plain, norm, expected), (doubled, found_norm, moments) = found
    assert plain and doubled and (plain["cur_scale"], doubled["cur_scale"]) == (256, 512)
    assert found_norm == norm and torch.equal(moments, expected)
