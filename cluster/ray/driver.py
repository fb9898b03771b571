"""The entry point of a job on Ray, run by Ray's job server: `python -m cluster.ray.driver LOGS/ray.json`."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.job import JobError
from cluster.ray.client import join
from cluster.ray.drain import DrainBeforeResize
from cluster.ray.group import Group
from cluster.ray.spec import Spec
from cluster.ray.worker import run_rank
from cluster.watch import PATIENCE, PREEMPTED

RESIZE_SECONDS = 10.0  # between two looks for nodes that have come
SETTLE_SECONDS = 30.0  # for Ray to notice that its workers have ended


def main(argv: list[str]) -> int:
    """Run the job to its end; returns its exit code."""
    spec = Spec.load(Path(argv[0]))
    os.chdir(spec.directory)
    try:
        join()
    except JobError as error:
        print(f"cluster: {error}", flush=True)
        return PREEMPTED
    _watch_for_the_end(spec)
    if spec.job.sweep:
        from cluster.ray.sweep import run_sweep

        return run_sweep(spec)
    return train(spec)


def train(spec: Spec, callbacks: Sequence[RayTrainCallback] = ()) -> int:
    """Train with Ray Train, started again after a preemption, a crash or a lost node, and when nodes have come.

    Returns:
        The exit code of the last attempt.
    """
    job = spec.job
    group = _start_group(spec)
    least, most = spec.ranks()
    all_callbacks: list[Any] = [DrainBeforeResize(group), *callbacks]
    run_config: Any = RunConfig(  # Any: Ray's annotations still name the classes of Train's first version
        name="train",
        storage_path=str(Path(spec.logs) / "ray"),
        failure_config=FailureConfig(max_failures=job.requeue),
        callbacks=all_callbacks,
    )
    scaling_config = ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=bool(job.gpus_per_node),
        resources_per_worker=spec.resources(),
        placement_strategy="PACK",
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )
    start_rank = functools.partial(run_rank, spec, group)
    trainer = DataParallelTrainer(start_rank, scaling_config=scaling_config, run_config=run_config)
    try:
        result: Any = trainer.fit()
    except TrainingFailedError:
        return ray.get(group.exit_code.remote())
    return result.return_value


def _start_group(spec: Spec) -> Any:
    """The actor that keeps the attempts: on this node, which the job does not outlive anyhow."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": here}
    return ray.remote(Group).options(name=f"group {spec.run_folder}", **options).remote(spec)


def _watch_for_the_end(spec: Spec) -> None:
    """Have all ranks save and end on SIGTERM, which `ray job stop` and `cancel` send, and before the time is up."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    limit = spec.job.time_seconds
    patience = PATIENCE if limit is None else float(spec.job.warning_seconds)
    wait = None if limit is None else max(0.0, limit - patience)

    def end() -> None:
        reason = "stopped" if stopped.wait(wait) else "the time is nearly up"
        deadline = time.monotonic() + patience
        while any(_ask_groups(lambda group: group.stop.remote(reason))) and time.monotonic() < deadline:
            time.sleep(1)  # asked again: a sweep begins other runs meanwhile
        time.sleep(SETTLE_SECONDS)  # this thread ends with the driver, if that does not wait for nodes
        sys.stdout.flush()
        os._exit(PREEMPTED)

    threading.Thread(target=end, daemon=True).start()


def _ask_groups(question: Callable[[Any], Any]) -> list[Any]:
    """The answers of all groups of this job that are alive; a sweep has one for each of its runs."""
    answers = []
    for name in ray.util.list_named_actors():
        if name.startswith("group "):
            try:
                answers.append(ray.get(question(ray.get_actor(name)), timeout=10))
            except (RayError, ValueError):  # it has ended meanwhile
                continue
    return answers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
