"""Models whose weights ZeRO partitions as they are built, compared with models that are built whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.partition_parameters import Init

from mvlm.config.schema import Config
from mvlm.pretrained.encoders import Vocabulary, build_recorded
from mvlm.training.engine import Engine
from mvlm.training.parallelize import parallelize
from mvlm.training.zero.divide import can_divide, divide
from tests.training.parity_worker import built, configuration, resolved, steps_of
from tests.training.saved_tensors import whole_tensors


def engine_from(config: Config, content: dict[str, Any], scenes: Path, divided: bool) -> tuple[Engine, Any]:
    """The engine and the first global batch of its data."""
    other, loader = built(config, 0, 1)
    tokens = Vocabulary(other.text.embedding.num_embeddings, other.text.settings.pad_token_id)
    model, weights = build_recorded(config.blueprint, tokens)
    ds_config = resolved(other, config, content, 1)
    assert can_divide(model, ds_config)
    if not divided:
        weights.materialize()
    parts = {"train": config.train, "kernels": config.kernels, "optim": config.optim, "objectives": config.objectives}
    engine = parallelize(model, ds_config, seed=0, weights=weights if divided else None, **parts)
    return engine, steps_of(loader)[0]


@pytest.mark.usefixtures("one_rank")
def test_empty_weights_are_not_broadcast(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, *_, **__: sent.append(tensor.nbytes))
    config = configuration(str(scenes), 16)
    other, _ = built(config, 0, 1)
    tokens = Vocabulary(other.text.embedding.num_embeddings, other.text.settings.pad_token_id)
    model, weights = build_recorded(config.blueprint, tokens)
    divide(model, weights, resolved(other, config, {"zero_optimization": {"stage": 3}}, 1))
    assert not sent


@pytest.mark.usefixtures("one_rank")
def test_no_parameter_is_gathered_before_the_first_step(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    gather = Init._all_gather

    def counted(init: Any, parameters: Any, *given: Any, **more: Any) -> Any:
        gathered.append(len(parameters))
        return gather(init, parameters, *given, **more)

    monkeypatch.setattr(Init, "_all_gather", counted)
    engine, batch = engine_from(configuration(str(scenes), 16), {"zero_optimization": {"stage": 3}}, scenes, True)
    assert not gathered
    reduced = engine.engine.optimizer.reduce_ready_partitions_and_remove_grads
    seen: list[Any] = []
    monkeypatch.setattr(
        engine.engine.optimizer,
        "reduce_ready_partitions_and_remove_grads",
        lambda parameter: seen.append(parameter) or reduced(parameter),
    )
    engine.step(batch, 0.5, 0)
    assert gathered and {id(parameter) for parameter in seen} == {id(p) for _, p in engine.parameters()}


@pytest.mark.parametrize(
    ("precision", "overrides"),
    [
        ({}, ("model.classifier_init=embedding", 'train.freeze=["vision"]')),
        ({"bf16": {"enabled": True}}, ("model.tie_classifier=true",)),
    ],
    ids=["fp32 frozen", "bf16"],
)
@pytest.mark.usefixtures("one_rank")
def test_a_divided_model_equals_the_whole_one(
    scenes: Path, precision: dict[str, Any], overrides: tuple[str, ...]
) -> None:
    config = configuration(str(scenes), 16, overrides)
    found = {}
    for divided in (False, True):
        engine, batch = engine_from(config, {"zero_optimization": {"stage": 3}} | precision, scenes, divided)
        decays = [group["weight_decay"] for group in engine.engine.optimizer.optimizer.param_groups]
        assert decays.count(0.0) == 2
        frozen = {name for name, parameter in engine.parameters() if not parameter.requires_grad}
        assert bool(frozen) == bool(config.train.freeze) and all(name.startswith("vision") for name in frozen)
        before = {name: whole["weight"] for name, whole in whole_tensors(engine)}
        buffers = dict(engine.model.named_buffers())
        losses = {name: loss.item() for name, loss in engine.step(batch, 0.5, 0).items()}
        found[divided] = before, buffers, losses
    assert found[True][2] == found[False][2]
    for whole, divided in zip(found[False][:2], found[True][:2], strict=True):
        assert whole.keys() == divided.keys() and all(torch.equal(whole[name], divided[name]) for name in whole)
