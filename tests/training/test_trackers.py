"""Trackers do not disturb the run, whether they work, fail or hang."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from mvlm.config.schema import Log
from mvlm.errors import UserError
from mvlm.training.logging import trackers
from mvlm.training.logging.monitor import Monitor
from mvlm.training.logging.trackers import (
    Follower,
    MLflow,
    TensorBoard,
    WeightsAndBiases,
    end_all,
    numbers,
    require_installed,
)
from tests.conftest import free_port

WANDB = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed (the extra `trackers`)")
MLFLOW = pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed (the extra `trackers`)")


class Recorder:
    """A tracker that calls `at_second`, which may fail or wait, before it takes its second line."""

    def __init__(self, at_second: Callable[[], object] = lambda: None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed: bool | None = None
        self._at_second = at_second

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.lines:
            self._at_second()
        self.lines.append((step, metrics))

    def picture(self, step: int, path: Path) -> None: ...

    def close(self, done: bool) -> None:
        self.closed = done


def test_a_follower_passes_everything_on_in_order() -> None:
    recorder, said = Recorder(), []
    follower = Follower("A tracker", lambda: recorder, said.append)
    for step in range(100):
        follower.log(step, {"loss": 0.5 * step})
    end_all([follower], done=True)
    assert recorder.lines == [(step, {"loss": 0.5 * step}) for step in range(100)]
    assert recorder.closed is True
    assert said == []


def test_a_tracker_that_fails_in_the_middle_is_given_up_with_one_sentence() -> None:
    def fail() -> None:
        raise ConnectionError("no route to host\nand more")

    recorder, said = Recorder(fail), []
    follower = Follower("A tracker", lambda: recorder, said.append)
    follower.log(0, {})
    follower.log(1, {})
    deadline = time.monotonic() + 60
    while not said and time.monotonic() < deadline:
        time.sleep(0.001)
    for step in range(2, trackers.LINES + 10):  # more than the queue of a working tracker holds
        follower.log(step, {})
    end_all([follower], done=True)
    assert recorder.lines == [(0, {})]
    assert said == [
        "A tracker has failed (no route to host), so the run continues without it; metrics.jsonl has everything."
    ]


def test_a_tracker_that_hangs_does_not_hold_up_the_run() -> None:
    held, said = threading.Event(), []
    follower = Follower("A tracker", lambda: Recorder(held.wait), said.append)
    began = time.monotonic()
    for step in range(trackers.LINES + 10):
        follower.log(step, {})
    end_all([follower], done=True, patience=0.2)
    assert time.monotonic() - began < 60
    assert said == [
        "A tracker accepts lines more slowly than they come, so some are missing there; metrics.jsonl has everything."
    ]
    held.set()


def test_a_tracker_that_is_slow_at_the_end_is_abandoned() -> None:
    held, said = threading.Event(), []
    follower = Follower("A tracker", lambda: Recorder(held.wait), said.append)
    follower.log(1, {})
    follower.log(2, {})
    end_all([follower], done=True, patience=0.1)
    assert said == ["A tracker has not accepted everything within 0 s and is abandoned; metrics.jsonl has everything."]
    held.set()


@pytest.mark.parametrize("place", [0, 1], ids=["first", "last"])
def test_a_tracker_that_hangs_takes_no_time_from_another(run: Path, place: int) -> None:
    from tensorboard.summary.writer import record_writer  # noqa: F401 - takes seconds that must not count below
    from torch.utils import tensorboard  # noqa: F401

    held, said = threading.Event(), []
    hanging = Follower("One", lambda: Recorder(held.wait), said.append)
    hanging.log(1, {})
    hanging.log(2, {})
    following = [Follower("TensorBoard", lambda: TensorBoard(run, 0), said.append)]
    following.insert(place, hanging)
    end_all(following, done=True, patience=3)
    assert said == ["One has not accepted everything within 3 s and is abandoned; metrics.jsonl has everything."]
    held.set()


def test_a_run_continues_if_tensorboard_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("not a folder")
    with Monitor(tmp_path, 0, 3, Log()) as monitor:
        for step in (1, 2, 3):
            monitor.log({"step": step, "loss": 1.0})
        monitor.finish(done=True)
    assert capsys.readouterr().err.count("TensorBoard has failed") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # users would see a traceback
def test_tensorboard_on_a_full_disk_fails_with_one_sentence(mount_disk: Callable[[str], Path]) -> None:
    run, said = mount_disk("8k"), []
    (run / "full").write_bytes(bytes(8 << 10))
    follower = Follower("TensorBoard", lambda: TensorBoard(run, 0), said.append)
    follower.log(1, {"loss": 1.0})
    end_all([follower], done=True)
    assert said == [
        "TensorBoard has failed ([Errno 28] No space left on device), so the run continues without it; metrics.jsonl "
        "has everything."
    ]


def test_trackers_get_only_finite_numbers() -> None:
    line = {"step": 3, "loss": math.nan, "lr": 0.1, "slowest_rank": 2, "grad_norm": None, "grad_norms/text": math.inf}
    assert numbers(line) == {"lr": 0.1, "slowest_rank": 2}


@pytest.mark.parametrize(("log", "package"), [(Log(wandb="project"), "wandb"), (Log(mlflow="http://host"), "mlflow")])
def test_a_tracker_that_is_asked_for_must_be_installed(log: Log, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"log\.{package} .*pip install {package}, or delete log\.{package}"):
        require_installed(log)
    require_installed(Log())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "mine"
    (run / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(run / "pictures/step_00000002.png")
    (run / "run.json").write_text(
        json.dumps({"world": 2, "config": {"optim": {"lr": 0.1}, "data": {"train": ["a" * 900]}}})
    )
    return run


def attempt(begin: Callable[[], trackers.Tracker], done: bool, *steps: int, picture: Path | None = None) -> list[str]:
    """Log these steps as one attempt of a run does; what a user reads."""
    said: list[str] = []
    follower = Follower("It", begin, said.append)
    for step in steps:
        follower.log(step, {"loss": 1.0 / step, "lr": 0.1, "grad_norm": 2.0, "grad_norms/vision": 1.5})
    if picture:
        follower.picture(steps[-1], picture)
    end_all([follower], done, patience=120)
    return said


@MLFLOW
def test_mlflow_continues_the_same_run(run: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    folder = str(tmp_path / "mlruns")
    assert attempt(lambda: MLflow(run, folder), False, 1, 2, picture=run / "pictures/step_00000002.png") == []
    client = MlflowClient(folder)
    (experiment,) = client.search_experiments(filter_string="name = 'mvlm'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("KILLED", "mine")
    assert attempt(lambda: MLflow(run, folder), True, 2, 3) == []
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (2, 0.5), (3, 1 / 3)]
    assert found.data.metrics["grad_norms/vision"] == 1.5
    assert found.data.params == {"optim.lr": "0.1", "data.train": str(["a" * 900])[:500]}
    assert [path.path for path in client.list_artifacts(found.info.run_id, "pictures")] == [
        "pictures/step_00000002.png"
    ]


@MLFLOW
def test_a_missing_server_is_reported_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = attempt(lambda: MLflow(run, f"http://127.0.0.1:{free_port()}"), True, 1, 2)
    assert len(said) == 1
    assert said[0].startswith("It has failed (")


@WANDB
def test_weights_and_biases_offline_continues_the_same_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert attempt(lambda: WeightsAndBiases(run, "team/project"), False, 1, 2) == []
    picture = run / "pictures/step_00000002.png"
    assert attempt(lambda: WeightsAndBiases(run, "team/project"), True, 2, 3, picture=picture) == []
    identity = json.loads((run / "trackers.json").read_text())["wandb"]
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert {folder.name.rpartition("-")[2] for folder in folders} == {identity}
    assert all((folder / f"run-{identity}.wandb").stat().st_size > 0 for folder in folders)
    assert list(folders[-1].rglob("media/images/*.png"))


def test_tensorboard_forgets_steps_that_are_repeated(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (
        attempt(lambda: TensorBoard(run, 0), False, 1, 2, 3, 2, 3) == []
    )  # as after going back to leave out a bad batch
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert attempt(lambda: TensorBoard(run, 1), True, 2) == []
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
