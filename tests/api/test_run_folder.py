"""Runs evaluated and exported from Python, against the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mvlm
from mvlm.__main__ import main
from mvlm.api.results import TrainedRun
from mvlm.errors import UserError
from tests.evaluate.tiny import CONFIG
from tests.export.conftest import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return TrainedRun(write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG))


def test_python_measures_what_the_command_does(run: TrainedRun, scenes: Path, tmp_path: Path) -> None:
    data, out = scenes / "eval", tmp_path / "out.json"
    measured = run.evaluate("retrieval", data, limit=12, rerank=4)
    words = ["--checkpoint", str(run.folder), "--data", str(data), "--limit", "12", "--rerank", "4", "--json", str(out)]
    assert main(["evaluate", "retrieval", *words]) == 0
    assert json.loads(out.read_text()) == json.loads(json.dumps(measured))
    assert measured["mean_recall"]["reranked"] is not None and measured["step"] == 7
    assert measured["protocol"].endswith(" At most 12 images are used: a limit of 0 takes all.")
    assert "At most" not in run.evaluate("retrieval", data, limit=10_000, rerank=4)["protocol"]
    some = run.evaluate("retrieval", data, limit=12, rerank=4, where="width > 0")
    assert some["protocol"] == f"{measured['protocol']} Only the rows where width > 0 are used."
    run.evaluate("reconstruction", data, limit=12, pictures=str(tmp_path / "drawn"))
    assert len(list((tmp_path / "drawn/pictures").iterdir())) == 1


def test_an_exported_run_has_the_same_weights(run: TrainedRun, tmp_path: Path) -> None:
    exported = mvlm.load(run.export(tmp_path / "exported"), "cpu").network.state_dict()
    assert all(exported[name].equal(weight) for name, weight in run.load("cpu").network.state_dict().items())


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        ("recall", {}, "no task 'recall' to evaluate: choose one of retrieval, "),
        ("retrieval", {"rerankk": 4}, "no argument rerankk for retrieval: choose among limit, batch, rerank"),
        ("foils", {"rerank": 4}, "no argument rerank for foils: choose among limit, batch, memory_gb"),
        ("retrieval", {"where": ["width > 0"]}, "cannot be `where`: give a"),
        ("retrieval", {"memory_gb": 0}, "cannot be `memory_gb`: give a"),
        ("retrieval", {"memory_gb": "4"}, "cannot be `memory_gb`: give a"),
        ("retrieval", {"memory_gb": float("inf")}, "cannot be `memory_gb`: give a"),
        ("retrieval", {"rerank": -1}, "cannot be `rerank`: give a"),
        ("retrieval", {"rerank": 2.5}, "cannot be `rerank`: give a"),
        ("retrieval", {"batch": 0}, "cannot be `batch`: give a"),
        ("retrieval", {"limit": -3}, "cannot be `limit`: give a"),
        ("retrieval", {"limit": "5"}, "cannot be `limit`: give a"),
        ("reconstruction", {"words": "red,blue"}, "'red,blue' cannot be `words`: give a list"),
    ],
)
def test_a_wrong_argument_is_refused(
    run: TrainedRun, scenes: Path, task: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run.evaluate(task, scenes / "eval", **arguments)


def test_an_unknown_export_format_is_refused(run: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no export format 'huggingface': choose one of hf, onnx, torch"):
        run.export(tmp_path / "other", form="huggingface")
    assert not (tmp_path / "other").exists()
