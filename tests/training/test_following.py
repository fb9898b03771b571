"""Evaluation as a job of its own, and during training: retrieval, foils and classification."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main
from mvlm.checkpoint.description import EVALUATIONS, RUN_JSON, fingerprint
from mvlm.checkpoint.layout import CHECKPOINTS, INDEX, find_checkpoint, step_name, step_of
from mvlm.checkpoint.selection import Selector
from mvlm.cli.train import evaluator
from mvlm.config.load import load_config
from mvlm.errors import HeldOutLost, UserError
from mvlm.evaluate.follow import EVALUATING, EvaluationJob, read_evaluations
from mvlm.evaluate.training import Evaluator
from mvlm.pretrained.runs import load_trained
from mvlm.report.facts import read_facts
from mvlm.report.page import about
from mvlm.watch.screen import screen
from mvlm.watch.status import Watcher
from tests.conftest import TINY
from tests.training.conftest import TOML, TrainHere, read_metrics

SELECT = "eval/foils_itc"


@pytest.fixture(scope="module")
def words(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("evaluated")
    command = ["synth", "--task", "foils", "--count", "12", "--seed", "4", "--out", str(folder / "foils")]
    assert data_tools(command) == 0
    for number in range(6):
        place = folder / "classes" / ("red", "blue")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    evaluated = [f"data.eval={scenes}/eval", f'eval.foils=["{folder}/foils"]', f"eval.classes={folder}/classes"]
    return [
        *evaluated,
        "eval.limit=12",
        "eval.share=1e9",
        "log.pictures=0",
        f"eval.select={SELECT}",
        "optim.warmup_steps=0",
    ]


@pytest.mark.parametrize("damaged", ["rows", "foils", "classes"])
def test_unreadable_held_out_data_is_reported_after_the_evaluation(
    one_rank: None, trained: Path, words: list[str], tmp_path: Path, damaged: str
) -> None:
    config = load_config(TOML, [*TINY, *words, "eval.select="])
    places = {"rows": config.data.eval[0], "foils": config.eval.foils[0], "classes": config.eval.classes}
    copies = {name: str(shutil.copytree(place, tmp_path / name)) for name, place in places.items()}
    files = sorted(Path(copies[damaged]).rglob("*.png" if damaged == "classes" else "*.arrow"))
    whole = files[0].read_bytes()
    settings = replace(config.eval, foils=(copies["foils"],), classes=copies["classes"])
    data = replace(config.data, eval=(copies["rows"],))
    loaded: Any = load_trained(find_checkpoint(trained), torch.device("cpu"))
    given = data, config.task, config.objectives, config.model.image_size, settings, 0
    files[0].write_bytes(whole.replace(b"\x89PNG", b"\0PNG", 2))
    evaluate = Evaluator(*given)
    for _ in range(2):
        with pytest.raises(HeldOutLost, match=re.escape(str(files[0]))):
            evaluate(loaded.model, trained, 2, True)
    files[0].write_bytes(whole)
    metrics = Evaluator(*given)(loaded.model, trained, 2, True).metrics
    assert {"eval/mean_recall", "eval/foils_itc", "eval/classification_top1"} < metrics.keys()


@pytest.mark.campaign
def test_a_job_beside_a_run_finds_what_the_run_itself_would(
    train_here: TrainHere, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    itself, left = tmp_path / "itself", tmp_path / "left"
    saving = ["checkpoint.every=2", "checkpoint.keep_every=2"]
    measure = evaluator(load_config(TOML, [*TINY, *words, "eval.every=2"]))
    assert train_here(itself, *words, *saving, "eval.every=2", evaluate=measure) == 0
    own = {line["step"]: line for line in read_metrics(itself) if "eval/mean_recall" in line}
    assert set(own) == {2, 4, 6}
    names = {"mean_recall", "foils_itc", "foils_itm", "classification_top1", "classification_mean_per_class"}
    assert {f"eval/{name}" for name in names} < set(own[2])

    assert evaluator(load_config(TOML, [*TINY, *words, "eval.every=-1"])) is None
    assert train_here(left, *words, *saving, "eval.every=-1") == 0
    assert not any(name.startswith("eval/") for line in read_metrics(left) for name in line)
    whole = Evaluator.__call__

    def pruned_meanwhile(self: Evaluator, model: Any, run: Path, step: int, last: bool) -> Any:
        if step < 6:  # the newest is never deleted
            shutil.rmtree(left / CHECKPOINTS / step_name(step))
        return whole(self, model, run, step, last)

    best = step_of(find_checkpoint(itself / "best"))
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", pruned_meanwhile)
        assert main(["evaluate", "--follow", str(left)]) == 0
    lines = read_evaluations(left)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [{k: v for k, v in line.items() if k != "weights"} for line in lines] == [own[step] for step in (2, 4, 6)]
    found = find_checkpoint(left / "best")
    assert step_of(found) == best and fingerprint(found) == fingerprint(find_checkpoint(itself / "best"))

    assert main(["evaluate", "--follow", str(left)]) == 0
    assert read_evaluations(left) == lines, "known steps are not evaluated again"
    with open(left / EVALUATING / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["evaluate", "--follow", str(left)]) == 1

    for run in (itself, left):
        facts, status = read_facts(run), Watcher(run).look()
        assert facts.curve("eval/mean_recall") == ([2, 4, 6], [own[step]["eval/mean_recall"] for step in (2, 4, 6)])
        assert ("Best checkpoint", f"step {best}, {SELECT} {own[best][SELECT]:.4g}") in about(facts)
        assert (status.best, status.best_score) == (best, {SELECT: own[best][SELECT]})
        assert status.evaluation["eval/mean_recall"] == own[6]["eval/mean_recall"] and status.state == "done"
        assert screen(status, Watcher(run).history)


def test_a_metric_that_is_not_measured_is_refused_before_training(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"eval.select is 'eval/recall', which is not among eval/mean_recall, "):
        evaluator(load_config(TOML, [*TINY, *words, "eval.select=eval/recall"]))


def test_following_takes_the_task_from_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["--follow", "runs/x", "retrieval", "--checkpoint", "x", "--data", "x"], ["--data", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *words])
        assert ended.value.code == 2
    said = capfd.readouterr().err
    assert "leave the task out" in said and "a task is required, or --follow RUN" in said


def test_neither_a_checkpoint_nor_a_deleted_run_is_followed(
    train_here: TrainHere, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Either would be waited for forever."""
    run = tmp_path / "run"
    assert train_here(run, *words, "eval.every=-1", "train.steps=2", "checkpoint.every=1") == 0
    checkpoint = find_checkpoint(run)
    assert main(["evaluate", "--follow", str(checkpoint)]) == 1
    assert f"{checkpoint} is a checkpoint, which has no log: give the folder of its run." in capsys.readouterr().err
    (run / RUN_JSON).unlink()  # as if the run had not ended
    job = EvaluationJob(run, (), lambda sentence: shutil.rmtree(run) if "step 2" in sentence else None)
    with pytest.raises(UserError, match=f"{run} has been moved or deleted: follow the run where it is now"):
        job.follow()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == []
    (tmp_path / EVALUATIONS).write_bytes(b'{"step": 1}\n{"step": \xff\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"eval\.jsonl, line 2, is not a metrics line: delete that line\."):
        read_evaluations(tmp_path)


def test_the_last_evaluation_of_a_step_counts(tmp_path: Path) -> None:
    lines = [{"step": 4, SELECT: 0.9}, {"step": 8, SELECT: 0.5}, {"step": 4, SELECT: 0.1}]
    (tmp_path / EVALUATIONS).write_text("".join(json.dumps(line | {"weights": "w"}) + "\n" for line in lines))
    job = EvaluationJob(tmp_path, (), print)
    job._selector = Selector(SELECT, lower=False, patience=0)
    best = job._best()
    assert best and (best.step, best.value) == (8, 0.5)


def test_evaluations_from_before_eval_select_was_changed_are_not_the_best(tmp_path: Path) -> None:
    lines = [{"step": 4, "eval/mean_recall": 0.9}, {"step": 8, SELECT: 0.5}]
    (tmp_path / EVALUATIONS).write_text("".join(json.dumps(line | {"weights": "w"}) + "\n" for line in lines))
    job = EvaluationJob(tmp_path, (), print)
    job._selector = Selector(SELECT, lower=False, patience=0)
    best = job._best()
    assert best and (best.step, best.value) == (8, 0.5)


def cut_weights(checkpoint: Path) -> None:
    with open(next(checkpoint.glob("weights-*")), "rb+") as file:
        file.truncate(100)


def empty_index(checkpoint: Path) -> None:
    (checkpoint / INDEX).write_text("")


@pytest.mark.parametrize("damage", [cut_weights, empty_index])
def test_a_damaged_checkpoint_is_reported_once_as_damaged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    checkpoint = find_checkpoint(run)
    damage(checkpoint)
    job = EvaluationJob(run, (), print)
    for _ in range(2):
        assert job._next().step != step_of(checkpoint)
    [sentence] = [line for line in capsys.readouterr().err.splitlines() if checkpoint.name in line]
    assert "is damaged and is not evaluated: " in sentence and "deleted" not in sentence
