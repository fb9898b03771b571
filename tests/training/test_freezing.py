"""Frozen parts, and averages of trained ones: what is computed, saved, resumed and evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mvlm.batch import Batch
from mvlm.config.schema import Config
from mvlm.errors import UserError
from mvlm.model.maskvlm import MaskVLM
from mvlm.pretrained.runs import load_run
from mvlm.training.optim import parameter_groups
from mvlm.training.parallelize import freeze, recompute_blocks
from tests.conftest import signals_kept
from tests.training.conftest import TrainHere, losses_by_step, train_in
from tests.training.parity_worker import built, configuration, steps_of


def model_and_batch(scenes: Path, *overrides: str) -> tuple[MaskVLM, Config, Batch]:
    config = configuration(str(scenes), 16, overrides)
    model, loader = built(config, 0, 1)
    return model, config, steps_of(loader)[0][0]


FROZEN = {"vision": ("vision.",), "text": ("text.",), "text.model.embeddings": ("text.model.embeddings.",)}


@pytest.mark.parametrize("parts", [("vision",), ("text",), ("text.model.embeddings", "vision"), ()], ids=str)
def test_frozen_parts_are_in_no_group_and_get_no_gradient(scenes: Path, parts: tuple[str, ...]) -> None:
    model, config, batch = model_and_batch(scenes)
    freeze(model, parts)
    prefixes = tuple(prefix for part in parts for prefix in FROZEN[part])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = {names[id(parameter)] for group in parameter_groups(model, config.optim) for parameter in group["params"]}
    everything = set(names.values())
    frozen = {name for name in everything if prefixes and name.startswith(prefixes)}
    assert listed == everything - frozen and bool(frozen) == bool(parts)
    sum(model(batch).values()).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} <= listed


@pytest.mark.parametrize("recompute", [0.0, 1.0])
def test_backward_does_not_enter_a_frozen_encoder(scenes: Path, recompute: float) -> None:
    """Its tokens require no gradient, and nothing in it is recomputed."""
    model, _, batch = model_and_batch(scenes, f"train.recompute={recompute}")
    freeze(model, ("vision",))
    recompute_blocks(model, recompute)
    calls: dict[str, int] = {}
    for part in ("vision.vit.blocks.0", "cross_text.blocks.0"):
        layer = next(m for m in model.get_submodule(part).modules() if isinstance(m, torch.nn.LayerNorm))
        layer.register_forward_hook(lambda *_, part=part: calls.__setitem__(part, calls.get(part, 0) + 1))
    assert not model.encode_image(batch.image_BCHW).requires_grad
    assert model.encode_text(batch.text_BL, batch.valid_BL).requires_grad
    calls.clear()
    losses = model(batch)
    before = dict(calls)
    sum(losses.values()).backward()
    assert calls["vision.vit.blocks.0"] == before["vision.vit.blocks.0"]
    assert (calls["cross_text.blocks.0"] > before["cross_text.blocks.0"]) == bool(recompute)


def test_freezing_unknown_parts_or_everything_is_refused(scenes: Path) -> None:
    model, *_ = model_and_batch(scenes)
    with pytest.raises(UserError, match=r"names 'visoin', which is not a part of this model; did you mean 'vision'\?$"):
        freeze(model, ("visoin",))
    with pytest.raises(UserError, match="known are vision, text, cross_image"):
        freeze(model, ("",))
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(model, tuple(name for name, _ in model.named_children()))
    model, *_ = model_and_batch(scenes, "objectives.image=0")
    with pytest.raises(UserError, match="leaves nothing to train"):  # no loss depends on the part that is not frozen
        freeze(model, tuple(name for name, _ in model.named_children() if name != "image_decoder"))


EMA, STEPS = 0.6, 4
WORDS = [
    f"train.ema={EMA}",
    "train.freeze=['vision']",
    f"train.steps={STEPS}",
    "checkpoint.every=1",
    "checkpoint.keep=9",
]


def tensors(run: Path, step: int, kind: str) -> dict[str, Tensor]:
    return load_file(run / f"checkpoints/step_{step:08d}/{kind}-00000-of-00001.safetensors")


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory, one_rank: None) -> tuple[Path, list[Any]]:
    """An undisturbed run, and for each of its evaluations the step and the weights of the model that it was given."""
    place, seen = tmp_path_factory.mktemp("whole"), []

    def evaluate(model: MaskVLM, folder: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        seen.append((step, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}))
        return {"eval/steps": step}, None

    with signals_kept():
        assert train_in(place, scenes, place / "run", *WORDS, "eval.every=2", evaluate=evaluate) == 0
    return place / "run", seen


def test_the_average_follows_the_formula_and_frozen_weights_stay(whole: tuple[Path, Any]) -> None:
    run, _ = whole
    first = tensors(run, 0, "weights")
    expected = {name: weight.double() for name, weight in first.items() if not name.startswith("vision.")}
    for step in range(1, STEPS + 1):
        weights = tensors(run, step, "weights")
        expected = {name: EMA * average + (1 - EMA) * weights[name].double() for name, average in expected.items()}
        found = tensors(run, step, "ema")
        assert found.keys() == expected.keys()
        for name, average in found.items():
            torch.testing.assert_close(average.double(), expected[name], rtol=1e-6, atol=1e-8)
    moved = {name for name, weight in weights.items() if not torch.equal(weight, first[name])}
    assert moved == expected.keys() - {name for name in expected if name not in moved}
    assert len(moved) > 60 and not any(name.startswith("vision.") for name in moved)
    assert not any("/vision." in title for title in tensors(run, STEPS, "moments"))


def test_evaluation_uses_the_average_and_training_does_not(whole: tuple[Path, Any]) -> None:
    run, seen = whole
    assert [step for step, _ in seen] == [2, 4]
    for step, given in seen:
        expected = tensors(run, step, "weights") | tensors(run, step, "ema")
        assert given.keys() == expected.keys()
        assert all(torch.equal(given[name], weight) for name, weight in expected.items())
    for name, parameter in load_run(run).model.named_parameters():
        assert torch.equal(parameter, seen[-1][1][name])


def content(run: Path) -> dict[str, bytes]:
    folder = run / f"checkpoints/step_{STEPS:08d}"
    return {path.name: path.read_bytes() for path in [*folder.glob("*.safetensors"), folder / "state.json"]}


def test_a_resumed_run_has_the_same_bits(whole: tuple[Path, Any], train_here: TrainHere, tmp_path: Path) -> None:
    """Weights, moments and averages after two more steps, though this run is not evaluated."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    (run / "checkpoints/latest").write_text("step_00000002")
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / f"checkpoints/step_{STEPS:08d}")
    assert train_here(run, *WORDS) == 0
    assert content(run) == content(whole[0])
    assert {step: losses_by_step(whole[0])[step] for step in (3, 4)} == losses_by_step(run)


def test_another_stage_can_resume_but_other_frozen_parts_cannot(
    whole: tuple[Path, Any], train_here: TrainHere, tmp_path: Path
) -> None:
    resume = f"checkpoint.resume={whole[0]}/checkpoints/step_00000002"
    assert train_here(tmp_path / "run", *WORDS, resume, deepspeed={"zero_optimization": {"stage": 3}}) == 0
    for kind in ("weights", "ema"):
        found, expected = tensors(tmp_path / "run", STEPS, kind), tensors(whole[0], STEPS, kind)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            close = torch.allclose(tensor, expected[name], rtol=1e-3, atol=1e-4)
            assert close or name.endswith(("key.bias", "key_value.bias", "qkv.bias")), name
    for parts in ("[]", "['text']"):
        with pytest.raises(UserError, match=r'^train\.freeze was \["vision"\] in the run of '):
            train_here(tmp_path / "other", *WORDS, resume, f"train.freeze={parts}")


def test_a_resumed_run_can_begin_or_end_an_average(
    whole: tuple[Path, Any], train_here: TrainHere, tmp_path: Path
) -> None:
    """It begins equal to the weights; a run that starts from this one takes the average and says so."""
    resume = f"checkpoint.resume={whole[0]}/checkpoints/step_00000002"
    assert train_here(tmp_path / "off", *WORDS, resume, "train.ema=0", "train.steps=3") == 0
    assert not list((tmp_path / "off/checkpoints").glob("*/ema-*"))
    assert train_here(tmp_path / "off", *WORDS) == 0
    third, last = (tensors(tmp_path / "off", step, "weights") for step in (3, STEPS))
    for name, average in tensors(tmp_path / "off", STEPS, "ema").items():
        expected = EMA * third[name].double() + (1 - EMA) * last[name].double()
        torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=1e-8)
    assert train_here(tmp_path / "next", "train.steps=1", f"checkpoint.init={whole[0]}") == 0
    begun = tensors(tmp_path / "next", 0, "weights")
    for name, average in tensors(whole[0], STEPS, "ema").items():
        assert torch.equal(begun[name], average)
    assert "its averaged weights" in json.loads((tmp_path / "next/started_from.json").read_text())["parts"][0]["source"]
