"""What a rank is started with on every back-end: an interpreter, variables, and a port to meet at."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from cluster import network
from cluster.job import Job

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Left by a launcher around this command, they would lay out the ranks in place of the job."""


def inherited() -> dict[str, str]:
    """This process's own variables, as far as they are a rank's business."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}


def defaults(job: Job) -> dict[str, str]:
    """Variables of the ranks where job.environment does not set them."""
    accelerator = {} if job.gpus_per_node else {"DS_ACCELERATOR": "cpu"}
    return accelerator | network.variables(job.network)


def added(job: Job) -> dict[str, str]:
    """Variables that the job gives its ranks."""
    return defaults(job) | job.environment


def python(job: Job) -> Path:
    """The interpreter on the nodes, or in the container."""
    if job.container:
        return Path("python")
    return Path(job.venv).absolute() / "bin/python" if job.venv else Path(sys.executable)


def free_port() -> int:
    """One that nobody listens on, on any interface of this node."""
    with socket.socket() as server:
        server.bind(("", 0))
        return server.getsockname()[1]
