"""The configuration: every key is read, written and checked, and mistakes are named."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvlm.config.load import OTHER_NAMES, config_from_dict, dump_config, flat, load_config
from mvlm.config.places import expanded
from mvlm.config.schema import Config
from mvlm.config.shipped import find_file
from mvlm.config.toml import as_toml
from mvlm.errors import UserError
from tests.conftest import ROOT

TABLES = {table.name: getattr(Config(), table.name) for table in dataclasses.fields(Config)}
KEYS = [(table, key.name) for table, section in TABLES.items() for key in dataclasses.fields(section)]
SOURCE = (ROOT / "mvlm/config/schema.py").read_text(encoding="utf-8")


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    return load_config(tmp_path / "run.toml", overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_papers_recipe_is_the_default(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config == Config()
    objectives, optim, model = config.objectives, config.optim, config.model
    assert (objectives.image, objectives.text, objectives.itc, objectives.itm) == (1, 1, 1, 1)
    assert (objectives.image_mask_ratio, objectives.text_mask_ratio, objectives.hide) == (0.6, 0.3, "one")
    assert (optim.lr, optim.encoder_lr, optim.weight_decay, optim.warmup_epochs) == (3e-4, 1e-5, 0.05, 5)
    assert (config.train.global_batch, model.cross_depth, model.decoder_depth, model.image_size) == (512, 3, 3, 224)
    assert (model.vision, model.text) == ("vit_base_patch16_224", "FacebookAI/roberta-base")


DECISIONS = {
    # encoders, dropout
    "model.vision_args": {},
    "model.text_args": {},
    "model.dropout": 0.0,
    # masks
    "objectives.image_masking": "token",
    "objectives.image_mask_rounding": "ceil",
    "objectives.image_mask_block": 2,
    "objectives.text_mask_token": 0.8,
    "objectives.text_mask_random": 0.1,
    "objectives.text_mask_minimum": 1,
    # cross-modality encoders
    "model.cross_heads": 12,
    "model.cross_norm": "pre",
    "model.cross_init_std": 0.02,
    # decoders
    "model.tie_classifier": False,
    "model.classifier_init": "auto",
    "objectives.normalized_targets": False,
    # contrast
    "objectives.contrastive": "softmax",
    "objectives.exclude_duplicates": True,
    # matching
    "objectives.itm_negatives": "hard",
    "objectives.itm_group": 64,
    "objectives.alignment_inputs": "full",
    # data
    "data.epoch": "pairs",
    "data.caption": "draw",
    "data.randaugment_kind": "same_hue",
    "data.shared_view": True,
    "data.text_length": 30,
    "data.weights": (),
    "data.vocabulary": 8192,
    "data.flip": True,
    # optimizer
    "optim.clip": 1.0,
    "optim.momentum": 0.95,
    "optim.layer_decay": 1.0,
    # questions
    "task.answer_minimum": 9,
}
"""What the paper leaves open and we decided: always a default of the configuration, never hard-coded."""


REFERENCE = {
    "model.contrastive_width": 256,
    "model.temperature": 0.07,
    "model.temperature_min": 0.001,
    "model.temperature_max": 0.5,
    "data.randaugment": (2, 7),
    "optim.betas": (0.9, 0.999),
    "optim.eps": 1e-8,
    "eval.rerank": 128,
}
"""Defaults of ALBEF's code (configs/Pretrain.yaml, configs/Retrieval_flickr.yaml, models/model_pretrain.py, optim)."""


@pytest.mark.parametrize("name", REFERENCE)
def test_a_default_from_albefs_code_is_marked(name: str) -> None:
    table, key = name.split(".")
    assert getattr(getattr(Config(), table), key) == REFERENCE[name]
    assert re.search(rf"^    {key}: .*\(R\)$", SOURCE, re.MULTILINE)


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_of_ours_is_a_marked_default(name: str) -> None:
    table, key = name.split(".")
    assert getattr(getattr(Config(), table), key) == DECISIONS[name]
    if name != "objectives.image_mask_block":  # the paper's 32 pixels; only the unit, patches, is ours
        assert re.search(rf"^    {key}: .*\(D\)$", SOURCE, re.MULTILINE)


@pytest.mark.parametrize("word", ["temperature=0.1", "temperature_min=0.01", "temperature_max=0.4"])
def test_the_sigmoid_has_a_scale_of_its_own(word: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[objectives]\ncontrastive = 'sigmoid'\n")
    assert load_config(tmp_path / "run.toml").objectives.contrastive == "sigmoid"
    with pytest.raises(UserError, match=rf"model\.{word.split('=')[0]} is .*: it must be left out if objectives"):
        load_config(tmp_path / "run.toml", [f"model.{word}"])


def test_every_default_marked_as_ours_is_listed_here() -> None:
    tree = re.findall(r"^class (\w+):|^    (\w+): .*\(D\)$", SOURCE, re.MULTILINE)
    table, marked = "", set()
    for name, key in tree:
        table = name or table
        if key:
            marked.add(f"{table.lower()}.{key}")
    assert marked == DECISIONS.keys() - {"objectives.image_mask_block"}


def another(value: Any, hint: Any) -> Any:
    """A value of the key's type other than its default; ranges have tests of their own."""
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if bool in typing.get_args(hint):
        return not isinstance(value, bool)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value * 0.5 + 0.001
    if isinstance(value, str):
        return 's3://quo"te\\back\nline\ttab é 猫 \x7f\x01'
    if hint == dict[str, float]:
        return {"a": 0.5, "odd key": 2.0}
    if isinstance(value, dict):
        return {"a": 1, "odd key": [1.5, True], "nested": {"s": "x"}}
    if value == ():  # weights need a folder each
        return () if typing.get_args(hint)[0] is float else ("one", "two")
    return tuple(item * 0.5 if isinstance(item, float) else item + 1 for item in value)


@pytest.mark.parametrize(("table", "key"), KEYS, ids=str)
def test_every_key_is_read_back_as_written(tmp_path: Path, table: str, key: str) -> None:
    section = getattr(Config(), table)
    value = another(getattr(section, key), typing.get_type_hints(type(section))[key])
    config = dataclasses.replace(Config(), **{table: dataclasses.replace(section, **{key: value})})
    if key == "caption":
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, epoch="images"))
    if key == "where":  # one for each data set
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, train=("one", "two")))
    if key == "peers":
        config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, mirror="memory://run"))
    if key == "name":  # the other task is retrieval, which reconstructs nothing
        config = dataclasses.replace(config, objectives=dataclasses.replace(config.objectives, image=0.0, text=0.0))
    if key in ("select", "patience", "foils", "classes"):  # useless without held-out shards
        select = "eval/mean_recall" if key == "patience" else config.eval.select
        data, evaluation = dataclasses.replace(config.data, eval=("shards",)), config.eval
        config = dataclasses.replace(config, data=data, eval=dataclasses.replace(evaluation, select=select))
    assert load(tmp_path, dump_config(config)) == config


@given(text=st.text(st.characters(exclude_categories=["Cs"])), number=st.floats(1e-300, 0.05, allow_nan=False))
@settings(max_examples=60, deadline=None)
def test_any_text_and_number_is_read_back(text: str, number: float) -> None:
    tables = {"log": {"wandb": text}, "optim": {"floor": number}, "model": {"text_args": {text: 1}}}
    config = config_from_dict(tables, "")
    assert config_from_dict(tomllib.loads(dump_config(config)), "") == config


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (np.float64(1e-3), 1e-3),
        (np.int32(7), 7),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (torch.tensor(0.5), 0.5),
        (Path("runs/a"), "runs/a"),
        ([Path("a"), np.int64(1)], ["a", 1]),
    ],
)
def test_numpy_torch_and_path_values_are_written_as_toml(given: Any, read: Any) -> None:
    assert tomllib.loads(f"value = {as_toml(given)}")["value"] == read


def test_patterns_are_expanded_to_shard_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a", "unfinished"):
        (tmp_path / "shards" / name).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "shards" / name / "manifest.json").write_text("{}")
    text = f'[data]\ntrain = ["shards/*", "memory://nowhere/*"]\neval = ["file://{tmp_path}/shards/a%20b", "none/*"]\n'
    data = load(tmp_path, text).data
    assert data.train == ("shards/a", "shards/b", "memory://nowhere/*")
    assert data.eval == (f"{tmp_path}/shards/a b", "none/*")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("[ab]", ["a", "b"]), ("[!a]", ["b"]), ("x[1", ["x[1"]), ("x[*", ["x[1"]), ("[z-a]", ["[z-a]"]), ("[]a]", ["a"])],
)
def test_brackets_in_a_url_are_read_as_in_a_shell(pattern: str, found: list[str]) -> None:
    for name in ("a", "b", "x[1"):
        fsspec.filesystem("memory").pipe(f"/brackets/{name}/manifest.json", b"{}")
    assert expanded([f"memory://brackets/{pattern}"]) == tuple(f"memory://brackets/{name}" for name in found)


@pytest.mark.parametrize("override", ["train.steps=7", "train.epochs=2"])
def test_a_length_is_refused_if_every_stage_has_its_own(tmp_path: Path, override: str) -> None:
    toml = tmp_path / "run.toml"
    stage = "[[stage]]\ntrain.epochs = 1\noptim.lr = 1e-3\n"
    toml.write_text(f"{stage}{stage}train.global_batch = 64\n")
    with pytest.raises(
        UserError, match=rf"^{override} would change nothing: .*run.toml has its own length; set it there"
    ):
        load_config(toml, [override])
    assert load_config(toml, ["train.global_batch=32"]).train.global_batch == 32  # this sets the first stage's


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[train]\nglobal_bach = 8", ("train.global_bach", "train.global_batch")),
        ("[optm]\nlr = 1", ("optm", "optim")),
        ("[objectives]\nimage_mask_ration = 0.5", ("objectives.image_mask_ration", "objectives.image_mask_ratio")),
        ("[eval]\nxyz = 1", ("eval.xyz", "rerank")),
        ("epochs = 3", ("epochs",)),
        ("train = 3", ("train", "table")),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    message = refusal(tmp_path, text)
    for part in ("run.toml", *parts):
        assert part in message


@pytest.mark.parametrize(
    ("text", "name", "wanted"),
    [
        ('[train]\nsteps = "many"', "train.steps", "a whole number"),
        ("[train]\nsteps = 1.5", "train.steps", "a whole number"),
        ("[train]\nsteps = true", "train.steps", "a whole number"),
        ("[optim]\nlr = '1e-3'", "optim.lr", "a number"),
        ("[optim]\nlr = false", "optim.lr", "a number"),
        ("[data]\nflip = 1", "data.flip", "true or false"),
        ("[run]\ndir = 3", "run.dir", "a string"),
        ("[model]\nvision_args = 3", "model.vision_args", "a table"),
        ("[optim]\nbetas = [0.9]", "optim.betas", "a list of 2"),
        ("[optim]\nbetas = 0.9", "optim.betas", "a list of 2"),
        ("[data]\ntrain = [1]", "data.train", "a string"),
        ("[data]\ncaption = 'all'", "data.caption", "'draw', 'cycle', 'first'"),
        (f"[objectives]\nitm = 1{400 * '0'}", "objectives.itm", "too large a number"),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, text: str, name: str, wanted: str) -> None:
    message = refusal(tmp_path, text)
    for part in ("run.toml", name, wanted):
        assert part in message


def test_an_integer_is_accepted_as_a_float_and_a_string_as_a_list_of_one(tmp_path: Path) -> None:
    config = load(tmp_path, "[optim]\nlr = 1\n[data]\ntrain = 'shards'")
    assert (config.optim.lr, type(config.optim.lr), config.data.train) == (1.0, float, ("shards",))


def test_hiding_both_modalities_is_refused_if_neither_reads_the_other(tmp_path: Path) -> None:
    alone = "[objectives]\nreconstruct_from = 'self'\n"
    assert "objectives.hide is 'both': it must be 'one' if" in refusal(tmp_path, alone + "hide = 'both'")
    assert load(tmp_path, alone).objectives.hide == "one"


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("train.steps=100", lambda c: c.train.steps, 100),
        ("optim.lr=3e-4", lambda c: c.optim.lr, 3e-4),
        ("run.dir=runs/a b", lambda c: c.run.dir, "runs/a b"),
        ("run.dir=a=b", lambda c: c.run.dir, "a=b"),
        ('run.dir="quoted"', lambda c: c.run.dir, "quoted"),
        ("checkpoint.init=", lambda c: c.checkpoint.init, ""),
        ("data.flip=false", lambda c: c.data.flip, False),
        ("data.train=one", lambda c: c.data.train, ("one",)),
        ("data.eval=", lambda c: c.data.eval, ()),
        ('data.train=["one", "two"]', lambda c: c.data.train, ("one", "two")),
        ("optim.betas=[0.9,0.98]", lambda c: c.optim.betas, (0.9, 0.98)),
        ("data.epoch=images", lambda c: c.data.epoch, "images"),
        ("model.vision_args={depth=3}", lambda c: c.model.vision_args, {"depth": 3}),
        ("model.vision_args.depth=3", lambda c: c.model.vision_args, {"depth": 3}),
    ],
)
def test_an_override_is_toml_or_a_bare_string(tmp_path: Path, override: str, get: Any, value: Any) -> None:
    assert get(load(tmp_path, "[train]\nsteps = 7", override)) == value


def test_the_last_override_wins_over_the_file_and_the_others(tmp_path: Path) -> None:
    assert load(tmp_path, "[train]\nsteps = 7", "train.steps=8", "train.steps=9").train.steps == 9


@pytest.mark.parametrize("override", ["steps=3", "train.steps", "train.=3", ".steps=3", "=3", "train", "run.dir.x=1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    assert override.split("=")[0] in refusal(tmp_path, "[run]\ndir = 'x'", override)


def test_a_mistake_in_an_override_is_named(tmp_path: Path) -> None:
    assert "did you mean train.steps" in refusal(tmp_path, "", "train.stepz=3")
    assert "train.steps is 'ten'" in refusal(tmp_path, "", "train.steps=ten")
    unquoted = refusal(tmp_path, "", "train.freeze=[text, vision]")
    assert """train.freeze is '[text, vision]', a text and not a list: write '["text", "vision"]'""" in unquoted


def test_for_a_key_in_the_wrong_table_the_right_table_is_named(tmp_path: Path) -> None:
    assert "unknown key train.lr; did you mean optim.lr?" in refusal(tmp_path, "", "train.lr=1e-4")
    assert "unknown key lr; did you mean optim.lr?" in refusal(tmp_path, "lr = 1e-4")


def test_for_another_trainers_name_of_a_key_ours_is_named(tmp_path: Path) -> None:
    assert set(OTHER_NAMES.values()) <= flat(Config()).keys()
    said = refusal(tmp_path, "", "train.batch_size=8")
    assert "unknown key train.batch_size; did you mean train.global_batch?" in said


def test_for_what_deepspeed_sets_its_configuration_is_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, "", "train.bf16=true")
    assert "unknown key train.bf16; did you mean bf16.enabled of the DeepSpeed configuration?" in said


@pytest.mark.parametrize(
    "override",
    [
        "run.dir=",
        "objectives.image=-1",
        "objectives.image_mask_ratio=0",
        "objectives.image_mask_ratio=1",
        "objectives.text_mask_ratio=1.5",
        "objectives.text_mask_minimum=0",
        "objectives.image_mask_block=0",
        "objectives.itm_group=0",
        "objectives.itm_group=1",
        "objectives.text_mask_token=1.1",
        "objectives.text_mask_random=-0.1",
        "model.temperature_min=0",
        "model.temperature=0.6",
        "model.dropout=1",
        "model.vision=",
        "model.vision_weights=",
        "model.text=",
        "model.text_weights=",
        "model.cross_depth=0",
        "model.decoder_depth=0",
        "model.image_size=0",
        "data.text_length=2",
        "data.crop_scale=[0.5,1.5]",
        "data.weights=[1,2,3]",
        "data.weights=[0]",
        "data.tolerance=-1",
        "data.crop_scale=[0.9,0.5]",
        "data.randaugment=[2,11]",
        "data.shuffle_block=0",
        "data.shuffle_window=0",
        "data.workers=-1",
        "data.prefetch=0",
        "optim.lr=0",
        "optim.lr=nan",
        "optim.encoder_lr=-1",
        "optim.betas=[0.9,1.0]",
        "optim.clip=-1",
        "optim.clip=nan",
        "optim.floor=2",
        "optim.decay_steps=-2",
        "optim.warmup_steps=-2",
        "optim.weight_decay=-0.1",
        "optim.eps=0",
        "train.epochs=0",
        "train.epochs=inf",
        "train.steps=-5",
        "train.global_batch=1",
        "train.micro_batch=-1",
        "checkpoint.keep=0",
        "checkpoint.every=-1",
        "log.every=0",
        "task.answer_minimum=0",
        "eval.batch=0",
        "eval.every=-2",
        "eval.select=eval/mean_recall",
        "eval.patience=3",
        "eval.rerank=-1",
        "eval.limit=-1",
        "model.contrastive_width=0",
        "model.cross_heads=0",
        "model.cross_init_std=-1",
        "optim.warmup_epochs=-1",
    ],
)
def test_an_impossible_value_is_refused(tmp_path: Path, override: str) -> None:
    message = refusal(tmp_path, "", override)
    assert override.split("=")[0] in message
    assert "must be" in message


def test_an_empty_encoder_does_not_mean_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    monkeypatch.chdir(tmp_path)
    assert "model.vision is" in refusal(tmp_path, "", "model.vision=")


def test_a_task_without_matching_needs_no_groups() -> None:
    words = ["data.train=shards", "train.global_batch=67"]
    assert load_config(ROOT / "mvlm/configs/vqa.toml", words).train.global_batch == 67
    with pytest.raises(UserError, match="for ITM's groups"):
        load_config(ROOT / "mvlm/configs/base.toml", words)


def test_shares_beyond_one_are_refused(tmp_path: Path) -> None:
    assert "text_mask_token" in refusal(
        tmp_path, "", "objectives.text_mask_token=0.7", "objectives.text_mask_random=0.4"
    )


def test_a_run_without_objectives_is_refused(tmp_path: Path) -> None:
    weights = [f"objectives.{name}=0" for name in ("image", "text", "itc", "itm")]
    assert "nothing to learn" in refusal(tmp_path, "", *weights)


@pytest.mark.parametrize("content", [None, b"[train\nsteps = 3", b"\xff\xfe[train]"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "odd.toml"
    if content is not None:
        file.write_bytes(content)
    for path in (file, tmp_path):
        with pytest.raises(UserError, match=re.escape(str(path))):
            load_config(path)


@pytest.mark.parametrize("path", sorted((ROOT / "mvlm/configs").rglob("*.toml")), ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert load_config(path) != Config()


def test_a_shipped_file_is_found_by_its_name_but_does_not_replace_a_mistyped_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from the checkout
    shipped_one = ROOT / "ds_configs/zero1.json"
    for name in ("zero1", "zero1.json", "ds_configs/zero1.json"):
        assert find_file(name, "ds_configs") == shipped_one
    assert find_file("mvlm/configs/ablation/itc.toml", "configs") == ROOT / "mvlm/configs/ablation/itc.toml"
    assert find_file("examples/scenes.toml", "configs") == ROOT / "examples/scenes.toml"
    for mistyped in ("mine/zero1.json", str(tmp_path / "zero1.json"), "zero9", "examples/zero1.json"):
        assert find_file(mistyped, "ds_configs") == Path(mistyped)
    Path("zero1.json").write_text("{}")
    assert find_file("zero1.json", "ds_configs") == Path("zero1.json")
