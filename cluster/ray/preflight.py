"""A preflight on a Ray cluster: a job whose ranks measure instead of training, placed as the job's would be."""

from __future__ import annotations

import dataclasses
import secrets

from mvlm.runtime.wording import counted

from ..job import Job, check_files, refuse
from .backend import CANNOT, entrypoint, runtime_env
from .client import address, connect, follow_driver_log, refusals_as_mistakes
from .spec import RayJobSpec

FILE = "preflight.json"
PLACE_SECONDS = 300  # for Ray to find room, or to add nodes
LIMIT_MINUTES = 10  # even if something hangs


def preflight(job: Job, overrides: list[str]) -> int:
    """Wait for the nodes, measure, and print what is found.

    Returns:
        0 if all is well; 1 if not.

    Raises:
        UserError: the job cannot run, or no job server answers.
    """
    check_files(job)
    refuse(job, "ray", (*CANNOT, "container"))
    client = connect(address(job))
    job.log_folder.mkdir(parents=True, exist_ok=True)
    once = dataclasses.replace(
        job, name=f"{job.name}-preflight", min_nodes=0, requeue=0, sweep=None, time=str(LIMIT_MINUTES)
    )
    spec = RayJobSpec.of(once, overrides)
    logs = job.log_folder.absolute()
    spec = dataclasses.replace(spec, words=["preflight", job.run, *overrides], logs=str(logs / "preflight"))
    spec.save(logs / FILE)
    environment = runtime_env(spec)
    environment["env_vars"]["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(PLACE_SECONDS)
    with refusals_as_mistakes():
        name = client.submit_job(
            entrypoint=entrypoint(spec, logs / FILE),
            submission_id=f"{once.name}-{secrets.token_hex(4)}",
            runtime_env=environment,
        )
    print(f"waiting for {counted(job.nodes, 'node')}, {PLACE_SECONDS} s at most", flush=True)
    try:
        follow_driver_log(client, name)
    except KeyboardInterrupt:
        client.stop_job(name)
        raise
    info = client.get_job_info(name)
    return 0 if info.status.value == "SUCCEEDED" else info.driver_exit_code or 1
