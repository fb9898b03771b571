"""A preflight on a Ray cluster: one worker a node, which starts the ranks there.

`preflight` hands this file to Ray's job server as a program; `main` is what runs on the cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cluster import network
from cluster.job import Job, JobError, check_files, refuse
from cluster.local import LAUNCHER_VARIABLES

FILE = "preflight.json"
ADDRESS = "RAY_API_SERVER_ADDRESS"
CANNOT = ("modules", "container", "partition", "account", "qos", "gpu_request", "launcher", "sbatch")
POLL_SECONDS = 1.0
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
    client = _client(job)
    job.log_folder.mkdir(parents=True, exist_ok=True)
    spec = job.log_folder.absolute() / FILE
    spec.touch(mode=0o600)  # the environment may hold passwords
    spec.write_text(json.dumps(_spec(job, overrides)), encoding="utf-8")
    here = str(Path(__file__).parents[1])
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        name = client.submit_job(
            entrypoint=shlex.join([_python(job), "-m", "cluster.ray_preflight", str(spec)]),
            submission_id=f"{job.name}-preflight-{secrets.token_hex(4)}",
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
    except RuntimeError as error:  # the client's, for whatever the server answers
        raise JobError(f"Ray's job server refuses it: {str(error).strip().splitlines()[0]}") from None
    try:
        return _follow(client, name)
    except KeyboardInterrupt:
        client.stop_job(name)
        raise


def _python(job: Job) -> str:
    return str(Path(job.venv).absolute() / "bin/python") if job.venv else sys.executable


def _spec(job: Job, overrides: list[str]) -> dict[str, Any]:
    accelerator = {} if job.gpus_per_node else {"DS_ACCELERATOR": "cpu"}
    cpus = float(job.ranks_per_node * (job.cpus_per_process or 1))
    return {
        "nodes": job.nodes,
        "ranks_per_node": job.ranks_per_node,
        "resources": {"CPU": cpus} | ({"GPU": float(job.gpus_per_node)} if job.gpus_per_node else {}),
        "directory": str(Path.cwd()),
        "command": [_python(job), "-u", "-m", "mvlm", "preflight", job.run, *overrides],
        "environment": accelerator | network.variables(job.network) | job.environment,
    }


def _client(job: Job) -> Any:
    address = job.ray_address or os.environ.get(ADDRESS, "")
    if not address:
        raise JobError(f"There is no address of a Ray cluster: set job.ray_address, or {ADDRESS}, to its dashboard's.")
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise JobError("There is no Ray in this Python: pip install 'ray[default,train]'.") from None
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise JobError(f"No job server of Ray answers at {address} ({reason}): check the address.") from None


def _follow(client: Any, name: str) -> int:
    """Print the program's output until it ends; its exit code."""
    shown = 0
    while True:
        info = client.get_job_info(name)
        try:
            text = client.get_job_logs(name)
        except RuntimeError:  # none yet
            text = ""
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
        if info.status.value in ENDED:
            return 0 if info.status.value == "SUCCEEDED" else info.driver_exit_code or 1
        time.sleep(POLL_SECONDS)


def main(argv: list[str]) -> int:
    """Place a worker on each node, have them start the ranks, and print what rank 0 says."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    ray.init(address="auto", log_to_driver=False)
    group = placement_group([spec["resources"]] * spec["nodes"], strategy="STRICT_SPREAD")
    print(f"waiting for {spec['nodes']} nodes, {PLACE_SECONDS:.0f} s at most", flush=True)
    if not group.wait(PLACE_SECONDS):
        wanted = " and ".join(f"{amount:g} {name}s" for name, amount in spec["resources"].items())
        print(f"cluster: Ray has no {spec['nodes']} nodes with {wanted} free on each: {_nodes(ray.nodes())}.")
        return 1
    workers: list[Any] = [
        ray.remote(Ranks)
        .options(
            num_cpus=spec["resources"]["CPU"],
            num_gpus=spec["resources"].get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
        )
        .remote(spec, number)
        for number in range(spec["nodes"])
    ]
    try:
        address, port = ray.get(workers[0].address.remote(), timeout=PLACE_SECONDS)
        runs = [worker.run.remote(address, port) for worker in workers]
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

    def __init__(self, spec: dict[str, Any], node: int) -> None:
        self._spec, self._node = spec, node

    def address(self) -> tuple[str, int]:
        """Of this node, and a port that is free on it."""
        import ray

        with socket.socket() as server:
            server.bind(("", 0))
            return ray.util.get_node_ip_address(), server.getsockname()[1]

    def run(self, master: str, port: int) -> tuple[int, str]:
        """Start the ranks and wait for them; the exit code and the output of the first."""
        count, world = self._spec["ranks_per_node"], self._spec["ranks_per_node"] * self._spec["nodes"]
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        meeting = {"MASTER_ADDR": master, "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "LOCAL_SIZE": str(count)}
        ranks = [
            subprocess.Popen(
                self._spec["command"],
                cwd=self._spec["directory"],
                env=inherited
                | self._spec["environment"]
                | meeting
                | {"RANK": str(self._node * count + local), "LOCAL_RANK": str(local)},
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
