"""One short run, observed while it trains, in its folder and in TensorBoard."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvlm.cli.train import evaluator
from mvlm.config.load import load_config
from mvlm.training.fit.run import train
from mvlm.watch.status import Status, Watcher
from tests.conftest import ROOT, TINY, signals_kept
from tests.training.conftest import TOML, read_metrics

LAST, EVERY = 6, 3


@dataclass
class Observed:
    run: Path
    seen: list[Status] = field(default_factory=list)  # by a watcher, at each evaluation and after the end


@pytest.fixture(scope="module")
def observed(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    observed = Observed(tmp_path_factory.mktemp("observed") / "run")
    observed.run.mkdir()
    (observed.run / "profile").write_text("2")
    own = [f"data.train={scenes}/train", f"data.eval={scenes}/eval", f"run.dir={observed.run}", f"train.steps={LAST}"]
    more = [f"eval.every={EVERY}", "eval.limit=16", "log.tensorboard=true", "log.every=2", "log.pictures=2"]
    config = load_config(TOML, [*TINY, *own, *more])
    measure, watcher = evaluator(config), Watcher(observed.run)

    def evaluate(*args: Any) -> Any:
        observed.seen.append(watcher.look())
        return measure(*args)

    with signals_kept():
        assert train(config, (str(ROOT / "ds_configs/cpu.json"), TOML), frozenset(), lambda _: evaluate) == 0
    observed.seen.append(watcher.look())
    return observed


def test_every_metric_is_explained(observed: Observed) -> None:
    logged = {name for line in read_metrics(observed.run) for name in line}
    page = (ROOT / "docs/observe.md").read_text(encoding="utf-8")
    section = page.partition("## metrics.jsonl")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    explained = {name for cell in first_cells for name in re.findall(r"`(.*?)`", cell)}
    assert {name for name in logged if not name.startswith("eval/")} - explained == set()
    kinds = ("grad_norms/", "eval/")
    elsewhere = {"task", "task_accuracy", "contrastive_bias", "mfu", "loss_scale", "overflows"}  # sigmoid, GPUs, fp16
    assert {name for name in explained if not name.startswith(kinds)} - elsewhere <= logged


def test_a_log_line_has_norms_accuracies_and_speed_beside_the_losses(observed: Observed) -> None:
    lines = [line for line in read_metrics(observed.run) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        parts = [value for name, value in line.items() if name.startswith("grad_norms/")]
        assert len(parts) == 6
        assert np.linalg.norm(parts) == pytest.approx(line["grad_norm"], rel=1e-5)
        assert 0 <= line["word_accuracy"] <= 1
        assert line["itm_accuracy"] * 48 == pytest.approx(round(line["itm_accuracy"] * 48), abs=1e-6)
        assert line["temperature"] == pytest.approx(0.07, rel=0.2)
        assert line["tflops"] > 0
        assert "mfu" not in line  # a CPU's peak performance is not known
        assert (line["skipped"], line["bad_images"]) == (0, 0)


def test_each_evaluation_draws_originals_masked_images_and_reconstructions(observed: Observed) -> None:
    paths = sorted((observed.run / "pictures").iterdir())
    assert [path.name for path in paths] == ["step_00000003.png", "step_00000006.png"]
    first, last = (np.asarray(Image.open(path)) for path in paths)
    assert first.shape == last.shape == (2 * 32 + 4, 4 * 32 + 3 * 4, 3)
    original, masked, restored = slice(0, 32), slice(36, 68), slice(72, 104)
    assert (first[:32, original] == last[:32, original]).all()
    grey = (first[:32, masked] == 127).all(-1)
    assert 0.5 < grey.mean() < 0.8
    assert (first[:32, masked][~grey] == first[:32, original][~grey]).all()
    assert (first[:32, restored] != last[:32, restored]).any()  # it has learned something in between


def test_tensorboard_has_the_same_metrics_and_pictures(observed: Observed) -> None:
    events = EventAccumulator(str(observed.run / "tensorboard"))
    events.Reload()
    lines = [line for line in read_metrics(observed.run) if "loss" in line]
    for name in ("loss", "word_accuracy", "grad_norms/vision"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    assert [event.step for event in events.Scalars("eval/mean_recall")] == [3, 6]
    assert [event.step for event in events.Images("pictures")] == [3, 6]


def test_the_trace_that_was_asked_for_has_the_first_two_steps(observed: Observed) -> None:
    assert not (observed.run / "profile").exists()
    (path,) = (observed.run / "traces").iterdir()
    assert path.name == "step_00000002.rank_00000.json.gz"
    with gzip.open(path) as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sorted(name for name in names if name.startswith("ProfilerStep")) == ["ProfilerStep#0", "ProfilerStep#1"]
    assert any(name.startswith("Optimizer.step#") for name in names)


def test_a_watcher_sees_it_running_and_then_done(observed: Observed) -> None:
    running, ending, done = observed.seen
    assert (running.state, running.attempt, running.world, running.seen) == ("running", 1, 1, 1)
    assert (running.step, running.steps, running.checkpoint) == (2, LAST, 0)
    assert running.seconds_left is not None and running.seconds_left > 0
    assert (ending.state, ending.step) == ("running", LAST)
    assert ending.evaluation["step"] == EVERY
    assert (done.state, done.checkpoint) == ("done", LAST)
    assert done.evaluation["step"] == LAST
