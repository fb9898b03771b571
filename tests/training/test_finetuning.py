"""Fine-tuning in the same loop: what it takes over from pretraining, exact resuming, and its measurements."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main as mvlm
from mvlm.checkpoint.layout import find_checkpoint
from mvlm.checkpoint.tensors import open_tensors
from mvlm.config.load import given_keys, load_config
from mvlm.config.schema import Data, Eval, Objectives, Task
from mvlm.data.samples.answers import load_answers
from mvlm.data.samples.evaluation import LabelledEvalDataset
from mvlm.data.samples.labelled import class_names
from mvlm.data.samples.standing_in import StandIns
from mvlm.data.samples.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from mvlm.data.shards.mixture import Mixture
from mvlm.errors import UserError
from mvlm.evaluate.training import Evaluator
from mvlm.pretrained.runs import load_run, load_task_run
from mvlm.runtime import dist
from mvlm.training.fit.run import train
from mvlm.training.run_folder import find_answers
from tests.conftest import ROOT, TINY, mvlm_command, run_command, signals_kept
from tests.training.conftest import TrainHere, read_metrics, train_in

WORLDS = {"vqa": "vqa", "nlvr2": "pairs", "entailment": "entailment"}
STEPS = 4


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """worlds(task) -> a folder with `train` and `eval` shards."""
    folder = tmp_path_factory.mktemp("worlds")

    def made(task: str) -> Path:
        out = folder / task
        if not out.exists():
            words = ["--task", WORLDS.get(task, task), "--count", "160", "--seed", "3", "--split", "train=0.8,eval=0.2"]
            assert data_tools(["synth", *words, "--out", str(out)]) == 0
        return out

    return made


@pytest.fixture(scope="module")
def pretrained(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pretrained")
    with signals_kept():
        assert train_in(place, scenes, place / "run", "train.steps=1") == 0
    return place / "run"


def tuning(shards: Path, task: str, init: Path, *more: str) -> list[str]:
    given = [f"task.name={task}", f"data.train={shards}/train", f"checkpoint.init={init}", "data.tokenizer=''"]
    sizes = ["task.answer_minimum=3", f"train.steps={STEPS}", "train.global_batch=8", "eval.batch=5"]
    return [*given, *sizes, *more]


@pytest.mark.parametrize("task", list(WORLDS))
def test_a_task_starts_from_pretraining_and_is_measured(
    task: str,
    train_here: TrainHere,
    pretrained: Path,
    worlds: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, shards = tmp_path / "run", worlds(task)
    assert train_here(run, *tuning(shards, task, pretrained, "model.image_size=48")) == 0

    said = capsys.readouterr().err.replace("\n", "")
    whole = task == "entailment"  # its sentences use the words of captions
    assert ("Texts are cut at data.text_length = " in said) != whole
    assert "vision.vit.pos_embed resized from 1 x 5 x 32 to 1 x 10 x 32; 6 new (head.0.weight, " in said
    listed = json.loads((run / "started_from.json").read_text())["parts"][0]
    assert len(listed["fresh"]) == 6 and "mlm_head" in listed["left"]
    with open_tensors(find_checkpoint(pretrained), "weights") as before:
        with open_tensors(run / "checkpoints" / "step_00000000", "weights") as first:
            start = {name: file.tensor() for name, file in first.items()}
        for name, tensor in start.items():
            if name == "vision.vit.pos_embed":
                fitted = resample_abs_pos_embed(before[name].tensor(), [3, 3])
                torch.testing.assert_close(tensor, fitted, rtol=0, atol=0)
            elif not name.startswith("head."):
                assert torch.equal(tensor, before[name].tensor()), name
    assert [line["loss"] == line["task"] for line in read_metrics(run) if "loss" in line] == [True] * STEPS

    predictions, result = tmp_path / "predictions", tmp_path / "result.json"
    words = ["evaluate", task, "--checkpoint", str(run), "--data", f"{shards}/eval", "--json", str(result)]
    assert mvlm([*words, "--predictions", str(predictions)]) == 0
    found = json.loads(result.read_text())
    assert found["step"] == STEPS and 0 <= found["accuracy"] <= 1
    assert ("none is longer" if whole else f" of {found['rows']} are longer, up to ") in found["protocol"]
    rows = sum(kind["rows"] for kind in found["by_kind"].values())
    assert rows == found["rows"] > 0
    if task == "vqa":
        answers = json.loads(predictions.read_text())
        assert {answer["answer"] for answer in answers} <= set(load_answers(run / "tokenizer" / "answers.json"))
        assert len({answer["question_id"] for answer in answers}) == rows
        unanswered_questions_are_predicted(run, tmp_path, capsys)
    else:
        assert len(predictions.read_text().splitlines()) == rows


def unanswered_questions_are_predicted(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From test-dev and test-std as published come the files that the server takes; training on them is refused."""
    (folder / "test2015").mkdir()
    asked = [(262144000, 262144, "what colour is the circle?"), (262144001, 262144, "where is the star?")]
    Image.new("RGB", (48, 48), "red").save(folder / "test2015/COCO_test2015_000000262144.jpg")
    listed = [{"image_id": image, "question": text, "question_id": number} for number, image, text in asked]
    questions = folder / "v2_OpenEnded_mscoco_test2015_questions.json"
    questions.write_text(json.dumps({"data_subtype": "test2015", "questions": listed}))
    shards, predictions = folder / "test", folder / "test.json"
    assert data_tools(["shard", "vqa", str(questions), "--images", str(folder), "--out", str(shards)]) == 0
    words = ["evaluate", "vqa", "--checkpoint", str(run), "--data", str(shards), "--predictions", str(predictions)]
    capsys.readouterr()
    assert mvlm(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "unknown" in said and "the evaluation server takes the file of --predictions" in said
    answers = json.loads(predictions.read_text())
    assert [set(answer) for answer in answers] == [{"question_id", "answer"}] * 2
    assert [answer["question_id"] for answer in answers] == [number for number, _, _ in asked]
    assert {answer["answer"] for answer in answers} <= set(load_answers(run / "tokenizer" / "answers.json"))
    with pytest.raises(UserError, match=r"Question 262144000 of data\.train has no answers"):
        find_answers(Task("vqa"), Mixture((str(shards),), task="vqa"))


def test_resuming_a_task_changes_no_loss(
    train_here: TrainHere, pretrained: Path, worlds: Callable[[str], Path], tmp_path: Path
) -> None:
    words = tuning(worlds("vqa"), "vqa", pretrained, "model.dropout=0.1", "checkpoint.every=2")
    assert train_here(tmp_path / "whole", *words) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "metrics.jsonl").unlink()
    (tmp_path / "parts" / "checkpoints" / "latest").write_text("step_00000002")
    assert train_here(tmp_path / "parts", *words) == 0
    whole, again = task_losses(tmp_path / "whole"), task_losses(tmp_path / "parts")
    assert list(again) == [3, 4] and again == {step: whole[step] for step in again}


def task_losses(run: Path) -> dict[int, tuple[float, float]]:
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in read_metrics(run) if "loss" in line}


def test_retrieval_has_only_its_two_losses(train_here: TrainHere, pretrained: Path, tmp_path: Path) -> None:
    words = ["task.name=retrieval", f"checkpoint.init={pretrained}", "data.tokenizer=''", "train.steps=2"]
    assert train_here(tmp_path / "run", *words) == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert all(line["loss"] == pytest.approx(line["itc"] + line["itm"]) and "text" not in line for line in lines)
    assert load_run(tmp_path / "run").blueprint.objectives.image == 0


def test_a_run_that_starts_from_another_uses_its_tokens(
    train_here: TrainHere, pretrained: Path, scenes: Path, tmp_path: Path
) -> None:
    """The weights know these, though the run's own captions would yield as many."""
    words = [f"checkpoint.init={pretrained}", f"data.train={scenes}/eval", "train.steps=1"]
    assert train_here(tmp_path / "run", *words, "data.tokenizer=auto") == 0
    known = load_tokenizer(str(pretrained / "tokenizer")).get_vocab()
    assert load_tokenizer(str(tmp_path / "run/tokenizer")).get_vocab() == known
    other = train_tokenizer(["nothing of the sort"], len(known))
    save_tokenizer(other, tmp_path / "other")
    with pytest.raises(UserError, match=r"has different tokens from .*, which the weights of checkpoint\.init know"):
        train_here(tmp_path / "third", *words, f"data.tokenizer={tmp_path}/other")


def test_a_metric_that_is_not_measured_is_refused_before_training(worlds: Callable[[str], Path]) -> None:
    data = Data(eval=(f"{worlds('entailment')}/eval",))
    for select in ("eval/accuracy", *(f"eval/{label}" for label in class_names("entailment", Path()))):
        Evaluator(data, Task("entailment"), Objectives(), 32, Eval(select=select), 0)
    with pytest.raises(UserError, match=r"'eval/mean_recall', which is not among eval/accuracy, eval/"):
        Evaluator(data, Task("entailment"), Objectives(), 32, Eval(select="eval/mean_recall"), 0)


def test_stand_ins_replace_both_images_of_an_unreadable_pair(
    worlds: Callable[[str], Path], pretrained: Path, tmp_path: Path
) -> None:
    """And all pairs after it, unread: an unreadable one may take long to fail."""
    shards = shutil.copytree(worlds("nlvr2") / "eval", tmp_path / "shards")
    shard = shards / "000000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\0PNG", 1))
    mixture, tokenizer = Mixture([shards], task="nlvr2"), load_tokenizer(str(pretrained / "tokenizer"))
    dataset = LabelledEvalDataset(mixture, "nlvr2", tokenizer, 16, 32)
    dataset.stand_ins = StandIns()
    image_VBCHW, text_BL, _ = dataset.samples([1, 0, 2])
    assert image_VBCHW.shape == (2, 3, 3, 32, 32) and len(text_BL) == 3
    assert image_VBCHW[:, 0].any() and not image_VBCHW[:, 1:].any()
    with pytest.raises(UserError, match=r"000000\.arrow row 0 \(key "):
        dataset.stand_ins.settle()
    assert dataset.samples([2])[0].any()


def test_accuracy_on_questions_without_answers_is_refused_as_metric(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "COCO_test2015_000000000001.jpg")
    asked = [{"image_id": 1, "question_id": number, "question": "what is it?"} for number in range(2)]
    (tmp_path / "asked.json").write_text(json.dumps({"questions": asked}))
    shards = str(tmp_path / "shards")
    words = ["shard", "vqa", str(tmp_path / "asked.json"), "--images", str(tmp_path), "--out", shards]
    assert data_tools(words) == 0
    Evaluator(Data(eval=(shards,)), Task("vqa"), Objectives(), 32, Eval(), 0)
    with pytest.raises(UserError, match=r"'eval/accuracy', and no question of .*/shards has answers to measure it by"):
        Evaluator(Data(eval=(shards,)), Task("vqa"), Objectives(), 32, Eval(select="eval/accuracy"), 0)


def test_metrics_of_objectives_without_weight_and_of_unknown_kinds_of_foils_are_refused(
    worlds: Callable[[str], Path], scenes: Path
) -> None:
    data, foils = Data(eval=(f"{scenes}/eval",)), (f"{worlds('foils')}/eval",)

    def prepare(select: str, **objectives: float) -> None:
        Evaluator(data, Task(), Objectives(**objectives), 32, Eval(select=select, foils=foils), 0)

    for select in ("eval/text_to_image_reranked_r1", "eval/foils_itm", "eval/foils_itm_colour"):
        prepare(select)
        with pytest.raises(UserError, match=rf"'{select}', which is not among eval/mean_recall, "):
            prepare(select, itm=0.0)
    prepare("eval/foils_itc_shape", itm=0.0)
    with pytest.raises(UserError, match=r"which is not among .* eval/foils_itm, eval/foils_itm_colour, "):
        prepare("eval/foils_itm_colours")


def test_foils_at_a_url_come_through_the_cache_of_the_run(
    worlds: Callable[[str], Path], scenes: Path, tmp_path: Path
) -> None:
    data = Data(eval=(f"{scenes}/eval",), cache=str(tmp_path / "cache"))
    Evaluator(
        data, Task(), Objectives(), 32, Eval(select="eval/foils_itm", foils=(f"local://{worlds('foils')}/eval",)), 0
    )
    assert list((tmp_path / "cache").glob("*.arrow"))


@pytest.mark.parametrize(("patience", "waits"), [(2.0, 2.0), (90.0, 15.0)])
def test_a_store_of_held_out_data_is_given_up_before_the_other_ranks_do(
    scenes: Path, patience: float, waits: float
) -> None:
    data = Data(eval=(f"{scenes}/eval",), patience=patience)
    evaluate = Evaluator(data, Task(), Objectives(), 32, Eval(), 0)
    assert evaluate._mixture.cache.outages.patience == waits < dist.TIMEOUT.total_seconds() / 60


def test_mistakes_are_reported_in_a_sentence(
    train_here: TrainHere, pretrained: Path, worlds: Callable[[str], Path], scenes: Path, tmp_path: Path
) -> None:
    shards = worlds("vqa")
    with pytest.raises(UserError, match="holds rows of the task 'caption' and not 'vqa'"):
        train_here(tmp_path / "a", *tuning(scenes, "vqa", pretrained))
    with pytest.raises(UserError, match=r"lower task\.answer_minimum"):
        train_here(tmp_path / "b", *tuning(shards, "vqa", pretrained, "task.answer_minimum=1000"))
    with pytest.raises(UserError, match=r"cannot be started from: .* give the same \[model\]"):
        train_here(tmp_path / "c", *tuning(shards, "vqa", pretrained, "model.cross_depth=2"))
    with pytest.raises(UserError, match=r"lacks it; give the same \[model\], objectives\.image_masking, "):
        train_here(tmp_path / "e", *tuning(shards, "vqa", pretrained, "objectives.image_masking=drop"))
    with pytest.raises(UserError, match=r"sees pixels of mean .* give model\.vision=vit_base_patch16_224\."):
        train_here(tmp_path / "d", *tuning(shards, "vqa", pretrained, "model.vision=deit_base_patch16_224"))
    with pytest.raises(UserError, match="is a run of pretrain and not of vqa"):
        load_task_run(pretrained, "vqa")


@pytest.mark.campaign
def test_two_ranks_train_and_predict_as_one(
    train_here: TrainHere, pretrained: Path, worlds: Callable[[str], Path], tmp_path: Path
) -> None:
    """With the recipe's own file, under DeepSpeed's launcher."""
    shards, toml, ds = worlds("nlvr2"), str(ROOT / "mvlm/configs/nlvr2.toml"), str(ROOT / "ds_configs/cpu.json")
    small = [*TINY, "model.vision=vit_base_patch16_224", "model.text=roberta", "model.text_weights=random"]
    words = [*small, *tuning(shards, "nlvr2", pretrained, "data.workers=1")]
    auto = "train.micro_batch=auto"  # the ranks agree: the whole of their share fits
    two = mvlm_command("train", toml, "--deepspeed_config", ds, f"run.dir={tmp_path}/two", *words, auto, ranks=2)
    done = run_command(two)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "two/run.json").read_text())["micro_batch"] == 4
    one_rank = [*words, f"run.dir={tmp_path}/one"]
    assert train(load_config(toml, one_rank), (ds, toml), given_keys(toml, one_rank)) == 0
    one, both = task_losses(tmp_path / "one"), task_losses(tmp_path / "two")
    assert list(both) == list(one)
    for step, losses in one.items():
        assert both[step] == pytest.approx(losses, rel=1e-4)

    words = ["evaluate", "nlvr2", "--checkpoint", f"{tmp_path}/two", "--data", f"{shards}/eval", "--batch", "5"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mvlm"]
    done = run_command([*launch, *words, "--predictions", f"{tmp_path}/two.csv"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert mvlm([*words, "--predictions", f"{tmp_path}/one.csv"]) == 0
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()
