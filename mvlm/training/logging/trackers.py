"""Where else a run's numbers and pictures go: TensorBoard, and Weights & Biases and MLflow when asked for.

Each follows in a thread of its own, so that one which is slow, unreachable or broken never holds up training: it is
given up with one sentence. `metrics.jsonl` has everything in any case.
"""

from __future__ import annotations

import json
import math
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mvlm.checkpoint.description import RUN_JSON, TRACKERS
from mvlm.config.schema import Log
from mvlm.errors import UserError, first_line
from mvlm.runtime.storage import write_durably

LINES = 1000  # that may wait for a tracker before more are dropped
PATIENCE = 30.0  # seconds that a tracker gets at the end to take what still waits
LONGEST_PARAMETER, PARAMETERS = 500, 100  # characters of one, and how many a request: MLflow's own limits
Say = Callable[[str], None]


class Tracker(Protocol):
    """Everything is called from one thread; any exception ends it."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def picture(self, step: int, path: Path) -> None: ...

    def close(self, done: bool) -> None: ...


def require_installed(log: Log) -> None:
    """Raises: UserError: a tracker that is asked for is not installed."""
    for key, package in (("wandb", "wandb"), ("mlflow", "mlflow")):
        if getattr(log, key) and find_spec(package) is None:
            raise UserError(
                f"log.{key} asks for a tracker that is not installed: pip install {package}, or delete log.{key}."
            )


def followers(run: Path, first_step: int, log: Log, say: Say) -> list[Follower]:
    """Those that the configuration asks for, already started, for the run that `run.json` describes."""
    asked: list[tuple[str, Callable[[], Tracker]]] = []
    if log.tensorboard:
        asked.append(("TensorBoard", lambda: TensorBoard(run, first_step)))
    if log.wandb:
        asked.append(("Weights & Biases", lambda: WeightsAndBiases(run, log.wandb)))
    if log.mlflow:
        asked.append(("MLflow", lambda: MLflow(run, log.mlflow)))
    return [Follower(name, begin, say) for name, begin in asked]


class Follower:
    """A tracker in its thread.

    Args:
        begin: makes the tracker; called in that thread.
        say: gets a sentence, once, when the tracker fails or falls behind.
    """

    def __init__(self, name: str, begin: Callable[[], Tracker], say: Say) -> None:
        self.name = name
        self._begin, self._say = begin, say
        self._said = False
        self._waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(LINES)
        self._done = True
        self._thread = threading.Thread(target=self._follow, name=f"mvlm-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._put(lambda tracker: tracker.log(step, metrics))

    def picture(self, step: int, path: Path) -> None:
        self._put(lambda tracker: tracker.picture(step, path))

    def end(self, done: bool) -> None:
        """Have it end once it has taken what still waits.

        Args:
            done: the run has reached its last step.
        """
        self._done = done
        self._put(None)

    def wait(self, deadline: float, patience: float) -> None:
        """Wait for its end until `deadline`, by `time.monotonic`, then abandon it; the complaint names `patience`."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._complain(f"{self.name} has not accepted everything within {patience:.0f} s and is abandoned")

    def _put(self, item: Callable[[Tracker], None] | None) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._complain(f"{self.name} accepts lines more slowly than they come, so some are missing there")

    def _follow(self) -> None:
        try:
            tracker = self._begin()
            while (item := self._waiting.get()) is not None:
                item(tracker)
            tracker.close(self._done)
        except Exception as error:  # whatever a tracker may raise
            reason = first_line(error)
            self._complain(f"{self.name} has failed ({reason}), so the run continues without it")

    def _complain(self, sentence: str) -> None:
        if not self._said:
            self._said = True
            self._say(f"{sentence}; metrics.jsonl has everything.")


def end_all(following: Sequence[Follower], done: bool, patience: float = PATIENCE) -> None:
    """Let trackers take what still waits, all at once, so that none has less time because of another.

    Args:
        done: the run has reached its last step.
        patience: seconds that all of them get together.
    """
    deadline = time.monotonic() + patience
    for follower in following:
        follower.end(done)
    for follower in following:
        follower.wait(deadline, patience)


class TensorBoard:
    """Writes its file itself: torch's writer has a thread of its own, which prints a traceback when a disk is full."""

    def __init__(self, run: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._event, self._summary = Event, summary
        self._writer = RecordWriter(open(folder / name, "ab"))  # noqa: SIM115 - closed in `close`
        self._write(file_version="brain.Event:2")
        self._restarts, self._trained = SessionLog(status=SessionLog.START), first_step
        self._write(step=first_step + 1, session_log=self._restarts)  # drops what was there from this step on

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if "lr" in metrics:  # a training line
            if step <= self._trained:  # the run has gone back
                self._write(step=step, session_log=self._restarts)
            self._trained = step
        for name, value in metrics.items():
            self._write(step=step, summary=self._summary.scalar(name, value))
        self._writer.flush()

    def picture(self, step: int, path: Path) -> None:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._write(step=step, summary=self._summary.image(path.parent.name, pixels, dataformats="HWC"))
        self._writer.flush()

    def close(self, done: bool) -> None:
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())


class WeightsAndBiases:
    """Args: project: "project" or "entity/project". Its own variables apply, such as WANDB_MODE=offline."""

    def __init__(self, run: Path, project: str) -> None:
        import wandb

        entity, _, name = project.rpartition("/")
        identity = _identity(run, "wandb") or _remember(run, "wandb", secrets.token_hex(4))
        facts = json.loads((run / RUN_JSON).read_text(encoding="utf-8"))
        self._wandb = wandb
        self._run = wandb.init(
            project=name,
            entity=entity or None,
            name=run.resolve().name,
            id=identity,
            resume="allow",
            dir=str(run),
            settings=wandb.Settings(console="off", quiet=True),
            config=facts.pop("config") | {"run_json": facts},
        )
        self._run.define_metric("*", step_metric="step")  # a repeated step appears twice, as in metrics.jsonl

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def picture(self, step: int, path: Path) -> None:
        self._run.log({"step": step, path.parent.name: self._wandb.Image(str(path))})

    def close(self, done: bool) -> None:
        self._run.finish()


class MLflow:
    """Args: uri: a tracking server, a database or a folder. MLFLOW_EXPERIMENT_NAME applies, by default "mvlm"."""

    def __init__(self, run: Path, uri: str) -> None:
        if "://" not in uri or uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is what was asked for
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient(tracking_uri=uri)
        if identity := _identity(run, "mlflow"):
            try:
                self._client.update_run(identity, status="RUNNING")
            except MlflowException:
                identity = None  # of another server, or deleted there
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mvlm")
            experiment = self._client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self._client.create_experiment(name)
            identity = self._client.create_run(number, run_name=run.resolve().name).info.run_id
            _remember(run, "mlflow", identity)
            tables = json.loads((run / RUN_JSON).read_text(encoding="utf-8"))["config"]
            settings = [
                Param(f"{table}.{key}", str(value)[:LONGEST_PARAMETER])
                for table, section in tables.items()
                for key, value in section.items()
            ]
            for start in range(0, len(settings), PARAMETERS):
                self._client.log_batch(identity, params=settings[start : start + PARAMETERS])
        self._identity = identity

    def log(self, step: int, metrics: dict[str, float]) -> None:
        now = round(1000 * time.time())
        self._client.log_batch(
            self._identity, [self._metric(name, value, now, step) for name, value in metrics.items()]
        )

    def picture(self, step: int, path: Path) -> None:
        self._client.log_artifact(self._identity, str(path), path.parent.name)

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._identity, "FINISHED" if done else "KILLED")


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """What a tracker can draw: finite numbers."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and name != "step" and math.isfinite(value)
    }


def _identity(run: Path, tracker: str) -> str | None:
    try:
        return json.loads((run / TRACKERS).read_text(encoding="utf-8")).get(tracker)
    except (OSError, ValueError, AttributeError):
        return None


IDENTITIES = threading.Lock()


def _remember(run: Path, tracker: str, identity: str) -> str:
    with IDENTITIES:  # trackers may begin at the same time
        known = {name: found for name in ("wandb", "mlflow") if (found := _identity(run, name))}
        write_durably(run / TRACKERS, json.dumps(known | {tracker: identity}))
    return identity
