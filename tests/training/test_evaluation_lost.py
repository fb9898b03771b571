"""A run whose held-out data cannot be read saves what it has done, and makes up for the evaluation when it goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mvlm.checkpoint.layout import find_checkpoint, step_of
from mvlm.errors import DataLost, HeldOutLost
from tests.conftest import ROOT, TINY
from tests.ranks import mvlm, run_ranks
from tests.training.conftest import TOML, TrainHere, losses_by_step, read_metrics

JSON = str(ROOT / "ds_configs/cpu.json")
SELECT = ["eval.select=eval/mean_recall", "eval.limit=16", "eval.batch=4", "eval.rerank=4", "checkpoint.every=100"]
MAGIC, NOT_ONE = b"\x89PNG", b"\0PNG"
DAMAGED = 12  # of 16 rows, so that of two ranks only the second meets it


def damage(shard: Path) -> None:
    parts = shard.read_bytes().split(MAGIC)
    before, after = MAGIC.join(parts[: DAMAGED + 1]), MAGIC.join(parts[DAMAGED + 1 :])
    shard.write_bytes(before + NOT_ONE + after)


def mend(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes().replace(NOT_ONE, MAGIC))


def train(run: Path, *words: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    given = [TOML, "--deepspeed_config", JSON, *TINY, f"run.dir={run}", *words]
    return run_ranks(mvlm, "train", *given, ranks=ranks)


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "eval/mean_recall" in line]


def state(run: Path) -> dict[str, Any]:
    return json.loads((find_checkpoint(run) / "state.json").read_text())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_damaged_row_loses_no_steps_and_no_evaluation(scenes: Path, tmp_path: Path, ranks: int) -> None:
    """At an evaluation on the way and at the last, with the best checkpoint chosen by them."""
    shards = shutil.copytree(scenes / "eval", tmp_path / "eval")
    words = [*SELECT, f"data.train={scenes}/train", f"data.eval={shards}", "train.steps=4", "eval.every=3"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, *words, ranks=ranks).returncode == 0
    damage(shards / "000000.arrow")
    for _ in range(3 - ranks):  # started again while nothing has been mended, it does not train on
        done = train(run, *words, f"data.tokenizer={whole}/tokenizer", ranks=ranks)
        assert done.returncode == 1, done.stderr
        sentence = f"{shards}/000000.arrow row {DAMAGED} (key "
        assert f"Stopped for lack of data ({sentence}" in done.stderr and "at step 3, saved in" in done.stderr
        assert "Traceback" not in done.stderr
        assert step_of(find_checkpoint(run)) == 3 and state(run)["unevaluated"] and not state(run)["best"]
    mend(shards / "000000.arrow")
    (done := train(run, *words, f"data.tokenizer={whole}/tokenizer", ranks=ranks)).check_returncode()
    assert "Stopped" not in done.stderr
    assert losses_by_step(run) == losses_by_step(whole)
    times = {"eval/seconds"}
    for ours, theirs in zip(evaluations(run), evaluations(whole), strict=True):
        assert {key: ours[key] for key in ours.keys() - times} == {key: theirs[key] for key in theirs.keys() - times}
    assert state(run) == state(whole)
    assert find_checkpoint(run / "best").name == find_checkpoint(whole / "best").name


def test_a_store_that_is_gone_at_the_last_evaluation(train_here: TrainHere, scenes: Path, tmp_path: Path) -> None:
    """The run is not done before it has been made, though every step has."""
    run, gone = tmp_path / "run", [True]

    def evaluate(model: Any, folder: Path, step: int, last: bool) -> tuple[dict[str, float], None]:
        assert last
        if gone:
            raise HeldOutLost(DataLost("http://store is gone."))
        return {"eval/mean_recall": 0.5}, None

    words = [f"data.eval={scenes}/eval", "train.steps=2"]
    assert train_here(run, *words, evaluate=evaluate) == 75
    assert train_here(run, *words, evaluate=evaluate) == 75
    assert not evaluations(run) and state(run)["step"] == 2
    gone.clear()
    assert train_here(run, *words, evaluate=evaluate) == 0
    assert [line["step"] for line in evaluations(run)] == [2] and not state(run)["unevaluated"]
    assert train_here(run, *words, evaluate=evaluate) == 0
    assert len(evaluations(run)) == 1, "it is made up for once"
    branch = [*words, f"checkpoint.resume={run}", "train.steps=3"]
    assert train_here(tmp_path / "branch", *branch, evaluate=evaluate) == 0
    assert [line["step"] for line in evaluations(tmp_path / "branch")] == [3]
