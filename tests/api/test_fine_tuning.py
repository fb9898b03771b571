"""Fine-tuning and fine-tuned models in Python, against the network called directly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mvlm
from data_tools.__main__ import main as data_tools
from mvlm.api.corpus import ShardedCorpus
from mvlm.api.images import view
from mvlm.api.recipe import choose_tuning
from mvlm.api.results import _conclude, write_recipe
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.config.load import load_config, load_stored_config
from mvlm.config.schema import Task
from mvlm.errors import UserError
from mvlm.pretrained.runs import load_task_run
from tests.evaluate.tiny import CONFIG
from tests.export.conftest import write_run

MadeRun = Callable[..., Path]


@pytest.fixture
def made_run(tmp_path: Path) -> MadeRun:
    """made_run(task) -> the folder of a run of that task."""
    return lambda task="pretrain": write_run(tmp_path / f"run-{task}", replace(CONFIG, task=Task(name=task)))


@pytest.fixture
def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (4, 24, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize(("task", "each"), [("vqa", 1), ("nlvr2", 2), ("entailment", 1)])
def test_answers_are_the_networks_own(made_run: MadeRun, pictures: list[np.ndarray], task: str, each: int) -> None:
    run, texts = made_run(task), ["a red circle", "is it blue"]
    model = mvlm.load_finetuned(run, "cpu")
    found = model.answer(pictures[: 2 * each], texts, top=2)
    loaded = load_task_run(run, task)
    for number, text in enumerate(texts):
        mine = pictures[number * each : (number + 1) * each]
        image_V1CHW = torch.stack([torch.from_numpy(view(one, CONFIG.model.image_size))[None] for one in mine])
        text_1L, valid_1L = model._tokens.batch([text])
        with torch.no_grad():
            logits_A = loaded.model.logits(image_V1CHW, text_1L, valid_1L)[0].double()
        share_A = 1 / (1 + (-logits_A).exp()) if task == "vqa" else logits_A.exp() / logits_A.exp().sum()
        order = share_A.argsort(descending=True)[:2].tolist()
        assert [answer for answer, _ in found[number]] == [model.answers[place] for place in order]
        assert [share for _, share in found[number]] == pytest.approx(share_A[order].tolist(), abs=1e-5)
    with pytest.raises(UserError, match=f"4, does not match the number of texts, 1: give {each} for each"):
        model.answer(pictures, "what is it?")


def test_an_unsuitable_run_task_or_corpus_is_refused(made_run: MadeRun, scenes: Path, tmp_path: Path) -> None:
    run = made_run()
    with pytest.raises(UserError, match=r"is a run of pretrain, .*mvlm\.load\."):
        mvlm.load_finetuned(run)
    with pytest.raises(UserError, match="has no task 'captions': choose one of vqa, nlvr2, entailment"):
        mvlm.finetune(run, "captions", scenes, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds 'caption' rows: give shards of vqa"):
        mvlm.finetune(run, "vqa", scenes, tmp_path)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "entailment"])
def test_the_chosen_recipe_is_a_valid_configuration(made_run: MadeRun, tmp_path: Path, task: str) -> None:
    run = made_run()
    config = load_stored_config(run / "config.toml")
    corpus = ShardedCorpus(("shards/train",), ("shards/eval",), 900)
    start = (config.data, config.model, config.optim)
    recipe = choose_tuning(start, run / "checkpoints/step_00000007", task, corpus, tmp_path / "out", 0)
    (tmp_path / "recipe.toml").write_text(recipe.text("A test."))
    tuned = load_config(tmp_path / "recipe.toml")
    assert tuned.task.name == task and tuned.model == config.model and tuned.data.tokenizer == ""
    assert tuned.data.text_length == config.data.text_length and tuned.data.train == ("shards/train",)
    assert tuned.train.epochs * 900 / tuned.train.global_batch >= 599


@pytest.mark.parametrize(
    ("vision", "weights", "rate"), [("patch_dictionary", "own.safetensors", 2e-3), ("resnet18", "others.pth", 2e-5)]
)
def test_only_externally_pretrained_encoders_get_the_low_learning_rate(
    tmp_path: Path, vision: str, weights: str, rate: float
) -> None:
    model, optim = replace(CONFIG.model, vision=vision, vision_weights=weights), replace(CONFIG.optim, lr=2e-3)
    corpus = ShardedCorpus(("shards/train",), (), 900)
    recipe = choose_tuning((CONFIG.data, model, optim), tmp_path, "vqa", corpus, tmp_path, 0)
    assert {choice.key: choice.value for choice in recipe.choices}["optim.lr"] == rate


@pytest.mark.campaign
def test_one_call_fine_tunes_a_run(trained: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    words = ["synth", "--task", "vqa", "--count", "300", "--seed", "3", "--split", "train=0.8,eval=0.2"]
    assert data_tools([*words, "--out", str(shards)]) == 0
    tuned = mvlm.finetune(trained, "vqa", shards, tmp_path / "run", {"train.steps": 2, "log.every": 1})
    assert [line["step"] for line in tuned.metrics] == [1, 2] and tuned.report.is_file()
    assert tuned.evaluation and tuned.evaluation["step"] == 2
    [[(answer, _)]] = tuned.load("cpu").answer(mvlm.open(shards / "eval")[0].image, "what colour is the circle?", top=1)
    assert answer in tuned.load("cpu").answers


def test_the_suggested_call_loads_the_best_checkpoint(made_run: MadeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run("vqa")
    shutil.copytree(run / "checkpoints/step_00000007", run / "checkpoints/step_00000005")
    (run / "checkpoints/best").write_text("step_00000005")
    _conclude(run, "vqa", ())
    assert f"mvlm.load_finetuned('{run}/best') loads it" in capsys.readouterr().out
    assert mvlm.load_finetuned(run / "best", "cpu").task == "vqa"


def test_a_run_folder_keeps_its_task_its_starting_point_and_its_data(made_run: MadeRun, tmp_path: Path) -> None:
    run, out, shards = made_run(), tmp_path / "out", tmp_path / "shards"
    for task in ("vqa", "entailment"):
        words = ["synth", "--task", task, "--count", "20", "--seed", "3", "--split", "train=1"]
        assert data_tools([*words, "--out", str(shards / task)]) == 0
    other = write_run(tmp_path / "other", CONFIG)
    config = load_stored_config(run / "config.toml")
    corpus = ShardedCorpus((str(shards / "vqa/train"),), (), 20)
    start = (config.data, config.model, config.optim)
    write_recipe(out, choose_tuning(start, find_checkpoint(run), "vqa", corpus, out, 0), "A test.")
    vqa = shards / "vqa"
    with pytest.raises(UserError, match="out is fine-tuned for vqa and not for entailment: give another `out`"):
        mvlm.finetune(run, "entailment", shards / "entailment", out)
    with pytest.raises(UserError, match=r"out began with .*/run-pretrain/.* and not with .*/other: give another `out`"):
        mvlm.finetune(other, "vqa", vqa, out)
    copied = shutil.copytree(vqa, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"out trains on .*/shards/vqa/train and not on .*/elsewhere/train"):
        mvlm.finetune(run, "vqa", copied, out)
    wrong = {"train.step": 1}  # refused last, so that this error means that all else was accepted
    with pytest.raises(UserError, match=r"unknown key train\.step"):
        mvlm.finetune(run, "vqa", vqa, out, wrong)
    shutil.rmtree(run)
    with pytest.raises(UserError, match=r"unknown key train\.step"):
        mvlm.finetune(run, "vqa", vqa, out, wrong)
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    (pretrained / "recipe.toml").write_text("[run]\ndir = 'pretrained'\n")  # as of mvlm.train, without a task
    with pytest.raises(UserError, match=r"pretrained is a run of mvlm\.train and not fine-tuned for vqa: give another"):
        mvlm.finetune(other, "vqa", vqa, pretrained)


def test_soups_in_one_folder_are_different_starting_points(made_run: MadeRun, tmp_path: Path) -> None:
    run, out, shards = made_run(), tmp_path / "out", tmp_path / "shards"
    words = ["synth", "--task", "vqa", "--count", "20", "--seed", "3", "--split", "train=1"]
    assert data_tools([*words, "--out", str(shards)]) == 0
    config = load_stored_config(run / "config.toml")
    first, second = (shutil.copytree(find_checkpoint(run), tmp_path / "soups" / name) for name in "ab")
    start, corpus = (config.data, config.model, config.optim), ShardedCorpus((str(shards / "train"),), (), 20)
    write_recipe(out, choose_tuning(start, first, "vqa", corpus, out, 0), "A test.")
    wrong = {"train.step": 1}  # refused last
    with pytest.raises(UserError, match=r"unknown key train\.step"):
        mvlm.finetune(first, "vqa", shards, out, wrong)
    with pytest.raises(UserError, match=r"out began with .*/soups/a and not with .*/soups/b: give another `out`"):
        mvlm.finetune(second, "vqa", shards, out, wrong)
