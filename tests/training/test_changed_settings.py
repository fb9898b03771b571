"""Settings that change between a stop and a resume are applied and reported, or refused; never silently."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from mvlm.checkpoint.state import TrainState
from mvlm.config.load import flat, given_keys, load_config, load_stored_config
from mvlm.config.schema import Config
from mvlm.config.toml import as_toml
from mvlm.errors import UserError
from mvlm.pretrained.encoders import Vocabulary, build_model
from mvlm.training.checkpoint.resume import Start
from mvlm.training.fit.settings import ON_RESUME, OnResume, Resumed, resume_config
from mvlm.training.health import anomaly
from mvlm.training.schedule import schedule_steps
from tests.training.conftest import KEPT, Resume, kept_words, read_metrics

TOML = str(KEPT / "run.toml")
CHECKPOINT = KEPT / "zero0/checkpoints/step_00000003"

OTHER: dict[str, Any] = {
    "data.weights": [2.0],
    "data.tokenizer": "tokenizer.json",
    "data.epoch": "pairs",
    "data.caption": "cycle",
    "data.crop_scale": [0.9, 1.0],
    "data.randaugment": [0, 0],
    "data.randaugment_kind": "albef",
    "data.worker_mode": "processes",
    "data.eval": [str(KEPT / "shards")],
    "data.cache": "cache",
    "model.vision": "vit_small_patch16_224",
    "model.vision_weights": "pretrained",
    "model.vision_args": {"patch_size": 8},
    "model.text": "bert",
    "model.text_weights": "weights",
    "model.text_args": {"hidden_size": 16},
    "model.text_pool": "mean",
    "model.cross_norm": "post",
    "model.dropout": 0.1,
    "model.temperature": 0.1,
    "model.temperature_min": 0.01,
    "model.temperature_max": 0.4,
    "model.classifier_init": "random",
    "objectives.image_masking": "drop",
    "objectives.image_mask_rounding": "floor",
    "objectives.hide": "both",
    "objectives.reconstruct_from": "self",
    "objectives.alignment_inputs": "masked",
    "objectives.itm_negatives": "uniform",
    "objectives.contrastive": "sigmoid",
    "objectives.itc_exchange": "ring",
    "objectives.text_mask_token": 0.7,
    "objectives.text_mask_random": 0.2,
    "objectives.text_mask_ratio": 0.4,
    "objectives.image_mask_ratio": 0.5,
    "objectives.extra": {"another": 1.0},
    "data.shuffle": "global",
    "task.name": "retrieval",
    "optim.betas": [0.8, 0.9],
    "optim.momentum": 0.9,
    "optim.name": "muon",
    "eval.foils": ["shards"],
    "eval.select": "eval/mean_recall",
    "optim.floor": 0.2,
    "optim.schedule": "wsd",
    "optim.layer_decay": 0.9,
    "train.freeze": ["vision"],
    "train.recompute": 0.5,
    "train.ema": 0.5,
    "train.spike": 4.0,
    "train.checksums": True,
    "train.audit": 0.5,
    "checkpoint.resume": "elsewhere",
    "checkpoint.init": "elsewhere",
    "checkpoint.mirror": "memory://elsewhere",
    "log.wandb": "project",
    "log.mlflow": "folder",
    "run.dir": "elsewhere",
}
"""Values of the keys for which `another` would find no valid one by doubling, negating or "plain"."""

OF_DATA_EVAL = ("eval.select", "eval.patience", "eval.foils", "eval.classes")
"""Keys that mean nothing without data.eval."""


def another(key: str, value: Any) -> Any:
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value if value > 0 else 1
    return "plain"


def resumed(*overrides: str, checkpoint: Path = CHECKPOINT) -> Resumed:
    start = Start(checkpoint, resumes=True, own=True)
    return resume_config(load_config(TOML, overrides), given_keys(TOML, overrides), start)


@pytest.mark.parametrize("key", sorted(flat(Config())))
def test_a_change_of_any_key_is_applied_and_reported_or_refused_by_name(key: str) -> None:
    stored = flat(load_stored_config(KEPT / "zero0/config.toml"))[key]
    given, kind = another(key, stored), ON_RESUME[key]
    words = kept_words(KEPT / "zero0", f"{key}={as_toml(given)}")
    words += ["data.epoch=images"] if key == "data.caption" else []
    words += [f"data.eval={KEPT / 'shards'}"] if key in OF_DATA_EVAL else []
    words += ["eval.select=eval/mean_recall"] if key == "eval.patience" else []
    words += ["checkpoint.mirror=memory://elsewhere"] if key == "checkpoint.peers" else []
    value = flat(load_config(TOML, words))[key]
    assert value != stored
    if kind in (OnResume.APPLIES, OnResume.PLACE, OnResume.ORDER):
        found = resumed(*words)
        assert flat(found.config)[key] == value
        sentences = [sentence for sentence in found.reported if f"{key}: " in sentence]
        quiet = kind is OnResume.ORDER or key in ("run.dir", "checkpoint.resume")  # an order is reported as it applies
        assert len(sentences) == (0 if quiet else 1)
        if sentences:
            assert f"{key}: {as_toml(stored)} -> {as_toml(value)}" in sentences[0]
    else:
        with pytest.raises(UserError) as error:
            resumed(*words)
        (sentence,) = (one for one in error.value.sentences if one.startswith(f"{key} was "))
        assert all(part in sentence for part in (as_toml(stored), as_toml(value), "leave it out", "checkpoint.init"))


def test_settings_that_may_change_leave_the_models_parameters_as_they_are() -> None:
    def parameters(config: Config) -> dict[str, torch.Size]:
        with torch.device("meta"):
            model = build_model(config.blueprint, Vocabulary(300, 1))
        return {name: parameter.shape for name, parameter in model.named_parameters()}

    stored = load_stored_config(KEPT / "zero0/config.toml")
    before, settings = parameters(stored), flat(stored)
    free = [key for key, kind in ON_RESUME.items() if kind is OnResume.APPLIES and key.startswith(("model", "object"))]
    for key in free:
        given = f"{key}={as_toml(another(key, settings[key]))}"
        assert parameters(resumed(*kept_words(KEPT / "zero0", given)).config) == before, key


def test_on_resume_has_every_key() -> None:
    assert set(ON_RESUME) == set(flat(Config()))


def test_a_setting_that_is_no_longer_given_is_kept_and_reported() -> None:
    found = resumed(*kept_words(KEPT / "zero2"), checkpoint=KEPT / "zero2/checkpoints/step_00000003")
    assert found.config.train.ema == 0.9
    (reported,) = (sentence for sentence in found.reported if "Kept" in sentence)
    assert "train.ema = 0.9 (default 0.0)" in reported


def test_changes_are_reported_applied_and_kept_with_each_attempt(
    resume_kept: Resume, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = ["optim.lr=0.005", "objectives.itc=0.5", "objectives.itm=0", "optim.clip=0.5", "train.ema=0.9"]
    changes += ["data.text_length=20", "train.steps=5", "train.global_batch=16", "data.randaugment=[0, 0]"]
    run = resume_kept(1, *changes)
    said = capfd.readouterr().err
    (told,) = (line for line in said.splitlines() if line.startswith("Changed since the checkpoint: "))
    for change in (
        "optim.lr: 0.01 -> 0.005",
        "objectives.itc: 1.0 -> 0.5",
        "objectives.itm: 1.0 -> 0.0",
        "optim.clip: 1.0 -> 0.5",
        "train.ema: 0.0 -> 0.9",
        "data.text_length: 30 -> 20",
        "train.steps: 6 -> 5",
        "train.global_batch: 32 -> 16",
        "data.randaugment: [2, 7] -> [0, 0]",
    ):
        assert change in told
    lines = read_metrics(run)[3:]
    assert [line["step"] for line in lines] == [4, 5]
    assert lines[-1]["lr"] == pytest.approx(0.005 * 0.1) and "itm" not in lines[-1]
    state = json.loads((run / "checkpoints/step_00000005/state.json").read_text())
    assert state["samples_seen"] == 3 * 32 + 2 * 16
    assert any((run / "checkpoints/step_00000005").glob("ema-*"))

    assert resume_kept(1, *changes, "train.steps=6", "optim.clip=1.0") == run  # its default
    said = capfd.readouterr().err
    (told,) = (line for line in said.splitlines() if line.startswith("Changed since the checkpoint: "))
    assert told.endswith("optim.clip: 0.5 -> 1.0, train.steps: 5 -> 6.")
    kept = [tomllib.loads((run / f"attempts/{n:04d}/config.toml").read_text()) for n in (1, 2)]
    assert [(tables["train"]["steps"], tables["optim"]["clip"]) for tables in kept] == [(5, 0.5), (6, 1.0)]
    assert tomllib.loads((run / "config.toml").read_text()) == kept[1]
    assert (run / "attempts/0002/deepspeed.json").read_text() == (run / "deepspeed.json").read_text()


def test_an_end_that_has_been_passed_is_refused(resume_kept: Resume) -> None:
    with pytest.raises(UserError, match=r"The run is at step 3, and train.steps ends it at step 2: "):
        resume_kept(1, "train.steps=2")


@pytest.mark.parametrize(
    ("key", "hiding"),
    [
        ("train.pairs", "train.steps = 0"),
        ("train.epochs", "train.steps = 0"),
        ("optim.warmup_epochs", "optim.warmup_steps = -1"),
    ],
)
def test_a_change_that_a_kept_key_would_hide_is_refused(key: str, hiding: str) -> None:
    start = Start(CHECKPOINT, resumes=True, own=True)
    with pytest.raises(UserError, match=rf"^{key} = 99\S* would change nothing, .* or {hiding} too\.$"):
        resume_config(load_config(TOML, [f"{key}=99"]), frozenset([key]), start)
    name, _, default = hiding.partition(" = ")
    both = load_config(TOML, [f"{key}=99", f"{name}={default}"])
    assert flat(resume_config(both, frozenset([key, name]), start).config)[key] == 99


def test_a_changed_zero_stage_is_reported(
    resume_kept: Resume, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = resume_kept(0)
    capfd.readouterr()
    run.rename(tmp_path / "zero1")
    resume_kept(1, "train.steps=7")
    said = capfd.readouterr().err
    assert "Changed in the DeepSpeed JSON since the checkpoint: zero_optimization.stage: 0 -> 1." in said


def steps(config: Config, samples: int, state: TrainState | None = None) -> tuple[int, int]:
    return schedule_steps(config.train, config.optim, samples, state)


def test_with_another_batch_the_learning_rate_continues_from_where_it_was() -> None:
    """The batch is halved at 4,000 of 10,000 samples, the first 1,000 of which are warm-up."""
    words = ["train.epochs=10", "optim.warmup_epochs=1", "optim.warmup_steps=-1", "train.steps=0"]
    before = load_config(TOML, [*words, "train.global_batch=20"])
    after = load_config(TOML, [*words, "train.global_batch=10"])
    state = TrainState(step=200, samples_seen=4000, seed=0, manifest_fingerprint="")
    assert steps(before, 1000) == steps(before, 1000, state) == (500, 50)
    total, warmup = steps(after, 1000, state)
    assert total == 200 + 6000 / 10
    assert (200 - warmup) / (total - warmup) == (200 - 50) / (500 - 50)
    later = TrainState(step=300, samples_seen=5000, seed=0, manifest_fingerprint="")
    assert steps(after, 1000, later) == (total, warmup)
    skipped = TrainState(step=200, samples_seen=4060, seed=0, manifest_fingerprint="", skipped=(20, 60, 100))
    assert steps(before, 1000, skipped) == (500, 50)


def test_a_loss_with_new_weights_is_no_spike(resume_kept: Resume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "ENOUGH", 1)
    run = resume_kept(0, "objectives.text=30", "train.max_skipped=0")
    assert min(line["loss"] for line in read_metrics(run)[3:]) > 3 * max(line["loss"] for line in read_metrics(run)[:3])
    assert resumed("objectives.text=30").alters_loss and not resumed("optim.lr=0.1").alters_loss
