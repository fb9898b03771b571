"""A run whose held-out data cannot be read saves what it has done, and catches up on the evaluation when resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvlm.checkpoint.layout import find_checkpoint, step_of
from mvlm.cli.train import evaluator
from mvlm.config.load import load_config
from mvlm.errors import DataLost, HeldOutLost
from mvlm.runtime import dist
from mvlm.training.fit.run import train
from tests.conftest import ROOT, TINY
from tests.ranks import run_ranks
from tests.training.conftest import TOML, TrainHere, losses_by_step, read_metrics

JSON = str(ROOT / "ds_configs/cpu.json")
WORDS = [
    *("eval.select=eval/mean_recall", "eval.limit=16", "eval.batch=4", "eval.rerank=4", "eval.every=3"),
    *("train.steps=4", "checkpoint.every=100"),
]
MAGIC, NOT_ONE = b"\x89PNG", b"\0PNG"
DAMAGED = 12  # of 16 rows, so that only the second of two ranks meets it


def damage(shard: Path, row: int = DAMAGED) -> None:
    parts = shard.read_bytes().split(MAGIC)
    before, after = MAGIC.join(parts[: row + 1]), MAGIC.join(parts[row + 1 :])
    shard.write_bytes(before + NOT_ONE + after)


def mend(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes().replace(NOT_ONE, MAGIC))


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "eval/mean_recall" in line]


def state(run: Path) -> dict[str, Any]:
    return json.loads((find_checkpoint(run) / "state.json").read_text())


def train_with_and_without_damage(scenes: Path, shards: Path, place: Path) -> None:
    """What each rank runs: an undisturbed run, and one that is started twice with a row damaged and once mended."""
    dist.init()
    shard = shards / "000000.arrow"

    def run(name: str, before: Callable[[Path], None] | None = None) -> None:
        if before and dist.rank() == 0:
            before(shard)
        dist.barrier()
        words = [*TINY, *WORDS, f"data.train={scenes}/train", f"data.eval={shards}", f"run.dir={place / name}"]
        words.append("train.ema=0.5")
        words += [f"data.tokenizer={place}/whole/tokenizer"] if name == "run" else []
        try:
            code = train(load_config(TOML, words), (JSON, TOML), frozenset(), evaluator)
        except HeldOutLost as error:
            code = error.exit_code
        print("ended with", int(code))

    run("whole")
    run("run", damage)
    run("run")
    if dist.rank() == 0:
        shutil.copytree(place / "run", place / "stopped")
    run("run", mend)


def test_a_damaged_row_loses_no_steps_and_no_evaluation(scenes: Path, tmp_path: Path) -> None:
    """The first evaluation meets it; evaluations also choose the best checkpoint."""
    shards = shutil.copytree(scenes / "eval", tmp_path / "eval")
    done = run_ranks(train_with_and_without_damage, scenes, shards, tmp_path, ranks=2)
    assert done.stdout.split() == ["ended", "with", "0", *["ended", "with", "1"] * 2, "ended", "with", "0"] * 2
    assert done.stderr.count(f"Stopped before an evaluation ({shards}/000000.arrow row {DAMAGED} (key ") == 2
    assert done.stderr.count("at step 3, saved in") == 2
    stopped, run, whole = tmp_path / "stopped", tmp_path / "run", tmp_path / "whole"
    assert step_of(find_checkpoint(stopped)) == 3, "restarted before the row is mended, it does not train on"
    assert not list(stopped.glob("pictures/*")), "stand-ins for images are not drawn"
    assert state(stopped)["unevaluated"] and not state(stopped)["best"] and not evaluations(stopped)
    assert losses_by_step(run) == losses_by_step(whole)
    assert evaluations(run) == evaluations(whole) and state(run) == state(whole)
    assert len(list(run.glob("pictures/*"))) == 2
    assert find_checkpoint(run / "best").name == find_checkpoint(whole / "best").name


def test_too_little_memory_for_an_evaluation_loses_no_steps(
    train_here: TrainHere, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def train_with(*more: str) -> int:
        words = [*WORDS, f"data.eval={scenes}/eval", "train.steps=2", "eval.every=1", *more]
        return train_here(tmp_path, *words, evaluate=evaluator(load_config(TOML, [*TINY, *words])))

    with pytest.raises(HeldOutLost, match=r"^eval.memory_gb 1e-05 does not hold one pair"):
        train_with("eval.memory_gb=1e-5")
    assert "Stopped before an evaluation (eval.memory_gb 1e-05 does not hold one pair" in capfd.readouterr().err
    assert step_of(find_checkpoint(tmp_path)) == 1 and state(tmp_path)["unevaluated"]
    assert train_with("eval.memory_gb=1") == 0
    assert [line["step"] for line in evaluations(tmp_path)] == [1, 2]


def test_a_run_is_not_done_before_its_last_evaluation(train_here: TrainHere, scenes: Path, tmp_path: Path) -> None:
    """The store is gone when all steps have been trained."""
    run, gone = tmp_path / "run", [True]

    def evaluate(model: Any, folder: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        assert last
        if gone:
            raise HeldOutLost.of(DataLost("http://store is gone."))
        return {"eval/mean_recall": 0.5}, None

    words = [f"data.eval={scenes}/eval", "train.steps=2"]
    assert train_here(run, *words, evaluate=evaluate) == 75
    assert train_here(run, *words, evaluate=evaluate) == 75
    assert not evaluations(run) and state(run)["step"] == 2
    gone.clear()
    assert train_here(run, *words, evaluate=evaluate) == 0
    assert [line["step"] for line in evaluations(run)] == [2] and not state(run)["unevaluated"]
    assert train_here(run, *words, evaluate=evaluate) == 0
    assert len(evaluations(run)) == 1, "it is caught up on once"
    branch = [*words, f"checkpoint.resume={run}", "train.steps=3"]
    assert train_here(tmp_path / "branch", *branch, evaluate=evaluate) == 0
    assert [line["step"] for line in evaluations(tmp_path / "branch")] == [3]
