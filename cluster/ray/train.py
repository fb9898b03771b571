"""A run on Ray Train: a worker for each rank, started again after a fault and when nodes have come."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, ResizingState
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..processes import PATIENCE
from .coordinator import Coordinator
from .spec import RayJobSpec
from .worker import run_rank

RESIZE_SECONDS = 10.0  # between two looks for nodes that have come
REPORT_SECONDS = 1.0
ACTOR = "mvlm coordinator of "  # a run's folder


def train(spec: RayJobSpec, report: Callable[[dict[str, Any]], None] | None = None, waits: bool = True) -> int:
    """Train, from the newest checkpoint after each fault.

    Args:
        report: is told of metrics as they come, the newest line of each second.
        waits: for room, however long there is none.

    Returns:
        The exit code of the last attempt.
    """
    coordinator = _start_coordinator(spec)
    if report:
        threading.Thread(target=_relay, args=(coordinator, report), daemon=True).start()
    least, most = spec.ranks()
    callbacks: list[Any] = [DrainBeforeResize(coordinator)]
    run_config: Any = RunConfig(  # Any: Ray's annotations still name the classes of Train's first version
        name="train",
        storage_path=str(Path(spec.logs) / "ray"),
        failure_config=FailureConfig(max_failures=spec.job.requeue, controller_failure_limit=-1 if waits else 0),
        callbacks=callbacks,
    )
    scaling_config = ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=bool(spec.job.gpus_per_node),
        resources_per_worker=spec.resources(),
        placement_strategy="PACK",
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )
    start_rank = functools.partial(run_rank, spec, coordinator)
    trainer = DataParallelTrainer(start_rank, scaling_config=scaling_config, run_config=run_config)
    try:
        result: Any = trainer.fit()
    except TrainingFailedError:
        return ray.get(coordinator.exit_code.remote())
    return result.return_value


def _start_coordinator(spec: RayJobSpec) -> Any:
    """On this node, which the job does not outlive anyhow."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    return ray.remote(Coordinator).options(name=ACTOR + spec.run_folder, **options).remote(spec)


def _relay(coordinator: Any, report: Callable[[dict[str, Any]], None]) -> None:
    reported = None
    while True:
        line = ray.get(coordinator.metrics.remote())
        if line and line != reported:
            report(line)
            reported = line
        time.sleep(REPORT_SECONDS)


class DrainBeforeResize(ControllerCallback):
    """Lets ranks save before Ray Train takes their workers away on purpose.

    Ray Train ends the workers at once when it resizes their group, and everything since the last checkpoint would be
    repeated. Its public callbacks are not told of it; this one is of its developers' interface, as of Ray 2.60.
    """

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Wait for the ranks before a resize; do not wait before a node is taken away, which Ray does itself."""
        if isinstance(current_state, ResizingState):
            ray.get(self._coordinator.drain.remote("nodes have come or gone", PATIENCE))
        elif isinstance(current_state, PreemptingState) and not isinstance(previous_state, PreemptingState):
            self._coordinator.drain.remote("a node is about to go", PATIENCE)
