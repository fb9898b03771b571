"""A run evaluated and exported from Python, against the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mvlm
from mvlm.__main__ import main
from mvlm.api.results import TrainedRun
from mvlm.errors import UserError
from tests.evaluate.tiny import CONFIG
from tests.export.conftest import write_run


def test_python_measures_and_writes_what_the_commands_do(scenes: Path, tmp_path: Path) -> None:
    run = TrainedRun(write_run(tmp_path / "run", CONFIG))
    data, out = scenes / "eval", tmp_path / "out.json"
    measured = run.evaluate("retrieval", data, limit=12, rerank=4)
    words = ["--checkpoint", str(run.folder), "--data", str(data), "--limit", "12", "--rerank", "4", "--json", str(out)]
    assert main(["evaluate", "retrieval", *words]) == 0
    assert json.loads(out.read_text()) == json.loads(json.dumps(measured))
    assert measured["mean_recall"]["reranked"] is not None and measured["step"] == 7
    exported = mvlm.load(run.export(tmp_path / "exported"), "cpu")
    assert all((exported.network.state_dict()[k] == v).all() for k, v in run.load("cpu").network.state_dict().items())
    assert measured["protocol"].endswith(" At most 12 images are used: a limit of 0 takes all.")
    assert "At most" not in run.evaluate("retrieval", data, limit=10_000, rerank=4)["protocol"]
    some = run.evaluate("retrieval", data, limit=12, rerank=4, where="width > 0")
    assert some["protocol"] == f"{measured['protocol']} Only the rows where width > 0 are used."
    with pytest.raises(UserError, match="no task 'recall' to evaluate: choose one of retrieval, "):
        run.evaluate("recall", data)
    with pytest.raises(UserError, match="no argument rerankk for retrieval: choose among limit, batch, rerank"):
        run.evaluate("retrieval", data, rerankk=4)
    with pytest.raises(UserError, match="no argument rerank for foils: choose among limit, batch, memory_gb"):
        run.evaluate("foils", data, rerank=4)
    for wrong in ({"where": ["width > 0"]}, {"memory_gb": 0}, {"memory_gb": "4"}):
        with pytest.raises(UserError, match=f"cannot be `{next(iter(wrong))}`: give a"):
            run.evaluate("retrieval", data, **wrong)
    run.evaluate("reconstruction", data, limit=12, pictures=str(tmp_path / "drawn"))
    assert len(list((tmp_path / "drawn/pictures").iterdir())) == 1
    for wrong in ({"rerank": -1}, {"rerank": 2.5}, {"batch": 0}, {"limit": -3}, {"limit": "5"}):
        with pytest.raises(UserError, match=f"cannot be `{next(iter(wrong))}`: give a"):
            run.evaluate("retrieval", data, **wrong)
    with pytest.raises(UserError, match="'red,blue' cannot be `words`: give a list"):
        run.evaluate("reconstruction", data, words="red,blue")
    with pytest.raises(UserError, match="There is no export format 'huggingface': choose one of hf, onnx, torch"):
        run.export(tmp_path / "other", form="huggingface")
    assert not (tmp_path / "other").exists()
