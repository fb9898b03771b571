"""The examples of docs/extending.md work after adding one line each, and the page shows them unchanged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools import readers
from data_tools.__main__ import main as data_tools
from mvlm.__main__ import main as mvlm
from mvlm.batch import Encoded
from mvlm.cli import evaluate as cli_evaluate
from mvlm.evaluate import task
from mvlm.evaluate.measured import evaluate_checkpoint
from mvlm.model.losses import extra
from tests.conftest import ROOT, TINY
from tests.scripts import load_script
from tests.training.conftest import one_rank  # noqa: F401

EXAMPLES = ROOT / "examples/extending"
TOML, JSON = str(ROOT / "mvlm/configs/tiny.toml"), str(ROOT / "ds_configs/cpu.json")


def example(name: str) -> ModuleType:
    return load_script(EXAMPLES / f"{name}.py")


def test_the_page_shows_each_example_as_it_is() -> None:
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(\"\"\".*?)```", page, flags=re.DOTALL)
    assert shown == [
        (EXAMPLES / name).read_text(encoding="utf-8")
        for name in ("csv_source.py", "gap_task.py", "distance_objective.py")
    ]


def test_the_example_of_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(readers.SOURCES, "csv", example("csv_source").CsvSource)
    for number in range(3):
        Image.fromarray(np.full((20, 20, 3), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    lines = ["image,caption", '0.png,"one, two"', "1.png,three", "../2.png,out", "none.png,nothing"]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "shards"
    assert data_tools(["shard", "csv", str(tmp_path / "all.csv"), "--tolerate", "0.6", "--out", str(out)]) == 0
    assert data_tools(["verify", str(out)]) == 0
    assert json.loads((out / "manifest.json").read_text())["rows"] == 2
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["where"], line["reason"]) for line in listed] == [
        ("all.csv:3", "image path leaves the folder"),
        ("all.csv:4", "image is missing"),
    ]
    Image.fromarray(np.full((20, 20, 3), 9, np.uint8)).save(tmp_path / "none.png")
    assert data_tools(["retry", str(out)]) == 0  # finds the record by its `where`
    assert json.loads((out / "manifest.json").read_text())["rows"] == 3


def test_the_examples_of_an_objective_and_a_task(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    scenes: Path,
    one_rank: None,  # noqa: F811
    own_signals: None,
) -> None:
    monkeypatch.setitem(extra.EXTRA, "distance", example("distance_objective").distance_loss)
    run = tmp_path / "run"
    words = ["train", TOML, "--deepspeed_config", JSON, *TINY, f"data.train={scenes}/train", f"run.dir={run}"]
    assert mvlm([*words, "train.steps=3", "objectives.extra.distance=0.5"]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert 0 < line["distance"] < 4
        four = sum(line[name] for name in ("image", "text", "itc", "itm"))
        assert line["loss"] == pytest.approx(four + 0.5 * line["distance"], rel=1e-5)

    gap = example("gap_task").Gap()
    monkeypatch.setitem(task.TASKS, gap.name, gap)
    monkeypatch.setitem(cli_evaluate.HELP, gap.name, "how far apart images and captions lie")
    out = tmp_path / "gap.json"
    assert mvlm(["evaluate", "gap", "--checkpoint", str(run), "--data", f"{scenes}/eval", "--json", str(out)]) == 0
    assert 0 < json.loads(out.read_text())["gap"] < 2

    few = evaluate_checkpoint("gap", run, [f"{scenes}/eval"], limit=4, where="width > 0")
    assert few["images"] == 4 and "At most 4 images" in few["protocol"] and "width > 0" in few["protocol"]
    unsaid = {name: value for name, value in few.items() if name not in ("protocol", "where")}
    monkeypatch.setattr(gap, "run", lambda *_: dict(unsaid))
    assert "At most 4 images" in evaluate_checkpoint("gap", run, [f"{scenes}/eval"], limit=4)["protocol"]


def test_the_objective_is_the_same_with_any_micro_batch() -> None:
    features = torch.nn.functional.normalize(torch.randn(2, 12, 8, dtype=torch.float64), dim=-1)
    number = torch.arange(12)

    def loss(rows: slice) -> torch.Tensor:
        own = Encoded(features[0, rows], features[1, rows], number[rows], number[rows])
        return example("distance_objective").distance_loss(own)

    parts = torch.stack([loss(slice(start, start + 3)) for start in range(0, 12, 3)])
    torch.testing.assert_close(parts.mean(), loss(slice(None)))


def test_an_unknown_objective_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, scenes: Path) -> None:
    words = ["train", TOML, "--deepspeed_config", JSON, *TINY, f"data.train={scenes}/train", f"run.dir={tmp_path}/run"]
    assert mvlm([*words, "objectives.extra.distance=0.5"]) == 1
    said = capsys.readouterr().err
    assert "'distance'" in said and "mvlm/model/losses/extra.py" in said
    assert mvlm([*words, "objectives.extra.distance=-1"]) == 1
    assert "objectives.extra" in capsys.readouterr().err
