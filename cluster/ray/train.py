"""A run on Ray Train: a worker for each rank, started again after a fault and when nodes have come."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # TorchTrainer's has each worker import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..logs import next_attempt
from .coordinator import Coordinator
from .room import Growth, find_room
from .spec import RayJobSpec
from .worker import run_rank

REPORT_SECONDS = 1.0
ACTOR = "mvlm coordinator of "  # a run's folder


def train(spec: RayJobSpec, report: Callable[[dict[str, Any]], None] | None = None, waits: bool = True) -> int:
    """Train, from the newest checkpoint after each fault.

    Args:
        report: is told of metrics as they come, the newest line of each second.
        waits: for room, however long that takes.

    Returns:
        The exit code of the last attempt.
    """
    coordinator = _start_coordinator(spec)
    if report:
        threading.Thread(target=_relay, args=(coordinator, report), daemon=True).start()
    most = spec.job.nodes
    least = spec.job.min_nodes or most
    while True:
        nodes = most if least == most else find_room(spec, least, most, waits)
        growth = Growth(spec, coordinator, most - nodes)
        growth.start()
        try:
            result: Any = _trainer(spec, coordinator, nodes, waits).fit()
            return result.return_value
        except (TrainingFailedError, RayActorError) as error:  # the latter if Train's controller was killed
            code = ray.get(coordinator.verdict.remote())
            goes_on = waits and (least < most or isinstance(error, RayActorError))
            if code is not None or not goes_on:
                return code if code is not None else ray.get(coordinator.exit_code.remote())
        finally:
            growth.end()


def _trainer(spec: RayJobSpec, coordinator: Any, nodes: int, waits: bool) -> DataParallelTrainer:
    """It starts all workers again after a fault; if nodes may come and go, `train` does so, on those that are there."""
    elastic = bool(spec.job.min_nodes) and spec.job.min_nodes < spec.job.nodes
    restarts = 0 if elastic else -1  # the coordinator says which are worth it, and how many
    storage, name = Path(spec.logs) / "ray", f"from-attempt-{next_attempt(Path(spec.logs)):03d}"
    limits: dict[str, Any] = {  # Any: a type checker reads the classes of Train's first version
        "max_failures": restarts,
        "max_preemption_failures": restarts,
        "controller_failure_limit": -1 if waits and not elastic else 0,
    }
    run_config = RunConfig(name=name, storage_path=str(storage), failure_config=FailureConfig(**limits))
    scaling_config = ScalingConfig(
        num_workers=nodes * spec.job.ranks_per_node,
        use_gpu=bool(spec.job.gpus_per_node),
        resources_per_worker=spec.resources(),
        placement_strategy="PACK",
    )
    start_rank = functools.partial(run_rank, spec, coordinator, storage / name)
    return DataParallelTrainer(start_rank, scaling_config=scaling_config, run_config=run_config)


def _start_coordinator(spec: RayJobSpec) -> Any:
    """Start it on this node, which the job would not outlive anyway. If it is killed, it knows no attempt when it is
    back, so that the workers begin another."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    options |= {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Coordinator).options(name=ACTOR + spec.run_folder, **options).remote(spec)


def _relay(coordinator: Any, report: Callable[[dict[str, Any]], None]) -> None:
    reported = None
    while True:
        line = ray.get(coordinator.metrics.remote())
        if line and line != reported:
            report(line)
            reported = line
        time.sleep(REPORT_SECONDS)
