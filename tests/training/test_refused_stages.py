"""Stages that cannot be trained are refused before the run begins, and are not appended to one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mvlm.__main__ import main
from mvlm.cli.train import evaluator
from mvlm.errors import UserError
from tests.ranks import mvlm, run_ranks
from tests.training.conftest import FLAT, KEPT, TOML, Staged, stage, staged_words


def test_a_stage_that_does_not_measure_the_selecting_metric_is_refused_before_the_run_begins(
    staged: Staged, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = stage("train.steps = 1") + stage("train.steps = 1", "objectives.itm = 0")
    words = [f"data.eval={scenes}/eval", "eval.select=eval/text_to_image_reranked_r1", *FLAT]
    with pytest.raises(UserError, match=r"^eval.select is 'eval/text_to_image_reranked_r1', which is not among"):
        staged("run", stages, *words, evaluator=evaluator)
    assert not (tmp_path / "run").exists()
    assert main(["check", f"{tmp_path}/run.toml", *staged_words(tmp_path / "run", scenes, *words)]) == 1
    assert "eval.select is 'eval/text_to_image_reranked_r1'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train.compile = true", "train.compile cannot be combined with ZeRO stage 3"),
        ("optim.clip = 0.5", "sets gradient_clipping to 1.0 but "),
    ],
)
def test_a_stage_that_contradicts_the_deepspeed_json_is_refused_before_the_run_begins(
    staged: Staged, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, sentence: str
) -> None:
    """It is refused at once and not after hours of training."""
    with pytest.raises(UserError, match=sentence):
        staged("run", stage("train.steps = 1") + stage("train.steps = 1", line), *FLAT, zero=3, gradient_clipping=1.0)
    assert not (tmp_path / "run").exists()
    words = [f"{tmp_path}/run.toml", "--deepspeed_config", f"{tmp_path}/zero3.json"]
    assert main(["check", *words, *staged_words(tmp_path / "run", scenes, *FLAT)]) == 1
    assert sentence in capsys.readouterr().out


def test_a_stage_whose_layers_cannot_be_split_is_refused_before_the_run_begins(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, toml, split = tmp_path / "run", tmp_path / "run.toml", tmp_path / "split.json"
    split.write_text(json.dumps({"tensor_parallel": {"autotp_size": 2}, "zero_optimization": {"stage": 1}}))
    words = ["train", str(toml), "--deepspeed_config", str(split), *staged_words(run, scenes, *FLAT)]
    stages = stage("train.steps = 1") + stage("train.steps = 1", "model.dropout = 0.1")
    toml.write_text(Path(TOML).read_text() + "\n" + stages)
    sentence = "where dropout would draw the same"
    done = run_ranks(mvlm, *words, ranks=2)
    assert (done.returncode, list(run.iterdir())) == (1, []) and sentence in done.stderr
    assert main(["check", *words[1:], "--world", "2"]) == 1
    assert sentence in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--epochs", "1e9"], "lower it"),
        (["--steps", "3", "train.steps=9"], "train.steps is the stage's length, as --steps is: give only the option"),
        (["--steps", "3", "train.freeze=['visoin']"], "train.freeze names 'visoin'"),
        (["--steps", "3", "model.image_size=24"], "24"),
        (["--steps", "3", "eval.select=eval/nothing"], "eval.select is 'eval/nothing'"),
        (["--steps", "3", "train.micro_batch=5"], "train.global_batch 32 is not a multiple of 5 (train.micro_batch)"),
    ],
)
def test_an_impossible_stage_is_not_appended(
    words: list[str], sentence: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert main(["stage", "add", str(run), *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not (run / "stages.toml").exists()


@pytest.mark.parametrize(
    ("section", "override", "sentence"),
    [
        ({"zero_optimization": {"stage": 3}}, "train.compile=true", "cannot be combined with ZeRO stage 3"),
        ({"tensor_parallel": {"autotp_size": 2}}, "model.dropout=0.1", "where dropout would draw the same"),
    ],
)
def test_a_stage_that_contradicts_the_runs_deepspeed_json_is_not_appended(
    section: dict[str, Any],
    override: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise it would end the run when its turn came."""
    run = shutil.copytree(KEPT / "zero1", tmp_path / "run")
    monkeypatch.chdir(KEPT)  # the path of its shards is relative to this folder
    for name, more in (("deepspeed.json", section), ("run.json", {"world": 2})):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(content | more))
    assert main(["stage", "add", str(run), "--steps", "1", override]) == 1
    assert sentence in capsys.readouterr().err
    assert not (run / "stages.toml").exists()
    assert main(["stage", "add", str(run), "--steps", "1"]) == 0
