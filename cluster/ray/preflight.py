"""A preflight on a Ray cluster: one worker a node, which starts the ranks there.

`preflight` hands this file to Ray's job server as a program; `main` is what runs on the cluster.
"""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.environment import free_port, inherited
from cluster.job import Job, JobError, check_files, refuse
from cluster.ray.client import address, connect, import_path, join, said_plainly, show_driver_log
from cluster.ray.spec import Spec

FILE = "preflight.json"
CANNOT = ("modules", "container", "partition", "account", "qos", "gpu_request", "launcher", "sbatch")
PLACE_SECONDS = 300.0  # for Ray to find room, or to add nodes
RANK_SECONDS = 600.0  # whatever hangs
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def preflight(job: Job, overrides: list[str]) -> int:
    """Wait for the nodes, measure, and print what is found.

    Returns:
        0 when all is well; 1 when not.

    Raises:
        JobError: the job cannot run, or no job server answers.
    """
    check_files(job)
    refuse(job, "ray", CANNOT)
    client = connect(address(job))
    job.log_folder.mkdir(parents=True, exist_ok=True)
    spec, file = Spec.of(job, overrides), job.log_folder.absolute() / FILE
    spec.save(file)
    with said_plainly():
        name = client.submit_job(
            entrypoint=shlex.join([spec.python, "-m", "cluster.ray.preflight", str(file)]),
            submission_id=f"{job.name}-preflight-{secrets.token_hex(4)}",
            runtime_env={"env_vars": {"PYTHONPATH": import_path()}},
        )
    try:
        show_driver_log(client, name, lambda: client.get_job_status(name).value not in ENDED)
    except KeyboardInterrupt:
        client.stop_job(name)
        raise
    info = client.get_job_info(name)
    return 0 if info.status.value == "SUCCEEDED" else info.driver_exit_code or 1


def main(argv: list[str]) -> int:
    """Place a worker on each node, have them start the ranks, and print what rank 0 says."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    spec = Spec.load(Path(argv[0]))
    nodes = spec.job.nodes
    resources = {name: amount * spec.job.ranks_per_node for name, amount in spec.resources().items()}
    try:
        join(address="auto", log_to_driver=False)
    except JobError as error:
        print(f"cluster: {error}", flush=True)
        return 1
    group = placement_group([resources] * nodes, strategy="STRICT_SPREAD")
    print(f"waiting for {nodes} nodes, {PLACE_SECONDS:.0f} s at most", flush=True)
    if not group.wait(PLACE_SECONDS):
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in resources.items())
        print(f"cluster: Ray has no {nodes} nodes with {wanted} free on each: {_nodes(ray.nodes())}.")
        return 1
    workers: list[Any] = [
        ray.remote(Ranks)
        .options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
        )
        .remote(spec, number)
        for number in range(nodes)
    ]
    try:
        host, port = ray.get(workers[0].address.remote(), timeout=PLACE_SECONDS)
        runs = [worker.run.remote(host, port) for worker in workers]
        code, said = ray.get(runs[0], timeout=RANK_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        print(f"cluster: the node of rank 0 is lost to Ray ({str(error).splitlines()[0]}): see `ray list nodes`.")
        return 1
    print(said, end="")
    return code


def _nodes(found: list[dict[str, Any]]) -> str:
    """Such as "n1 has 8 CPUs and 2 GPUs, n2 is dead"; those that others use are among them."""
    live = [
        f"{node['NodeName']} has {node['Resources'].get('CPU', 0):g} CPUs and {node['Resources'].get('GPU', 0):g} GPUs"
        for node in found
        if node["Alive"]
    ]
    dead = [f"{node['NodeName']} is dead" for node in found if not node["Alive"]]
    return ", ".join([*live, *dead])


class Ranks:
    """The ranks of one node, as an actor of Ray."""

    def __init__(self, spec: Spec, node: int) -> None:
        self._spec, self._node = spec, node

    def address(self) -> tuple[str, int]:
        """Of this node, and a port that is free on it."""
        import ray

        return ray.util.get_node_ip_address(), free_port()

    def run(self, master: str, port: int) -> tuple[int, str]:
        """Start the ranks and wait for them; the exit code and the output of the first."""
        spec, job = self._spec, self._spec.job
        count = job.ranks_per_node
        meeting = {"MASTER_ADDR": master, "MASTER_PORT": port, "WORLD_SIZE": count * job.nodes, "LOCAL_SIZE": count}
        variables = inherited() | spec.environment() | {name: str(value) for name, value in meeting.items()}
        ranks = [
            subprocess.Popen(
                [spec.python, "-u", "-m", "mvlm", "preflight", job.run, *spec.overrides],
                cwd=spec.directory,
                env=variables | {"RANK": str(self._node * count + local), "LOCAL_RANK": str(local)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if local else subprocess.PIPE,
                stderr=subprocess.DEVNULL if local else subprocess.STDOUT,
                text=True,
            )
            for local in range(count)
        ]
        said = ranks[0].communicate()[0]
        codes = [rank.wait() for rank in ranks]
        return codes[0], said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
