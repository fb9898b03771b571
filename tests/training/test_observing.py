"""One short run, and all that can be seen of it: while it trains, in its folder, and in TensorBoard."""

from __future__ import annotations

import gzip
import json
import re
import signal
from collections.abc import Iterator
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
from mvlm.training.health.signals import SIGNALS
from mvlm.watch.status import Status, Watcher
from tests.conftest import ROOT, TINY
from tests.training.conftest import TOML, read_metrics

LAST, EVERY = 6, 3


@dataclass
class Observed:
    run: Path
    seen: list[Status] = field(default_factory=list)  # by a watcher, at each evaluation
    said: str = ""


@pytest.fixture(scope="module")
def observed(one_rank: None, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
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

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    assert train(config, (str(ROOT / "ds_configs/cpu.json"), TOML), frozenset(), lambda _: evaluate) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    observed.seen.append(watcher.look())
    yield observed


def test_every_metric_is_explained(observed: Observed) -> None:
    logged = {name for line in read_metrics(observed.run) for name in line}
    page = (ROOT / "docs/observe.md").read_text(encoding="utf-8")
    page = page.partition("## metrics.jsonl")[2].partition("\n## ")[0]
    explained = {
        name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)
    }
    assert {name for name in logged if not name.startswith("eval/")} - explained == set()
    kinds = ("grad_norms/", "eval/")
    elsewhere = {"task", "task_accuracy", "contrastive_bias", "mfu", "loss_scale", "overflows"}  # sigmoid, GPUs, fp16
    assert {name for name in explained if not name.startswith(kinds)} - elsewhere <= logged


def test_a_log_line_says_what_was_computed_anyhow(observed: Observed) -> None:
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
        assert "mfu" not in line  # a CPU's peak is not known
        assert (line["skipped"], line["bad_images"]) == (0, 0)


def test_pictures_are_restored_at_evaluations(observed: Observed) -> None:
    paths = sorted((observed.run / "pictures").iterdir())
    assert [path.name for path in paths] == ["step_00000003.png", "step_00000006.png"]
    first, last = (np.asarray(Image.open(path)) for path in paths)
    assert first.shape == last.shape == (2 * 32 + 4, 4 * 32 + 3 * 4, 3)
    original, hidden, restored = slice(0, 32), slice(36, 68), slice(72, 104)
    assert (first[:32, original] == last[:32, original]).all()
    grey = (first[:32, hidden] == 127).all(-1)
    assert 0.5 < grey.mean() < 0.8
    assert (first[:32, hidden][~grey] == first[:32, original][~grey]).all()
    assert (first[:32, restored] != last[:32, restored]).any()  # it has learned something between


def test_tensorboard_has_it_too(observed: Observed) -> None:
    events = EventAccumulator(str(observed.run / "tensorboard"))
    events.Reload()
    lines = [line for line in read_metrics(observed.run) if "loss" in line]
    for name in ("loss", "word_accuracy", "grad_norms/vision"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    assert [event.step for event in events.Scalars("eval/mean_recall")] == [3, 6]
    assert [event.step for event in events.Images("pictures")] == [3, 6]


def test_a_trace_of_the_first_steps_was_asked_for(observed: Observed) -> None:
    assert not (observed.run / "profile").exists()
    (path,) = (observed.run / "traces").iterdir()
    assert path.name == "step_00000002.rank_00000.json.gz"
    with gzip.open(path) as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sorted(name for name in names if name.startswith("ProfilerStep")) == ["ProfilerStep#0", "ProfilerStep#1"]
    assert any(name.startswith("Optimizer.step#") for name in names)


def test_it_was_seen_to_run_and_to_be_done(observed: Observed) -> None:
    running, ending, done = observed.seen
    assert (running.state, running.attempt, running.world, running.seen) == ("running", 1, 1, 1)
    assert (running.step, running.steps, running.checkpoint) == (2, LAST, 0)
    assert running.seconds_left is not None and running.seconds_left > 0
    assert (ending.state, ending.step) == ("running", LAST)
    assert ending.evaluation["step"] == EVERY
    assert (done.state, done.checkpoint) == ("done", LAST)
    assert done.evaluation["step"] == LAST
