"""What a rank is started with on every back-end: an interpreter, and variables.

If `job.network` is "auto", NCCL finds InfiniBand, RoCE and the plugin for EFA by itself and falls back on sockets. If
the network is named, a run that would crawl over the wrong one ends at its start instead. What depends on the node,
such as the interface that gloo takes, is chosen there by the rank (mvlm.runtime.network), which prints all of it.

Sources: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html,
https://github.com/aws-samples/awsome-distributed-training (EFA cheatsheet).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mvlm.errors import UserError

from .job import Job

REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
"""A secret by reference: it is written to no file, but read where the process starts."""

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""If a launcher around this command has set these, they would lay out the ranks instead of the job."""
VIRTUAL_INTERFACES = ("lo", "docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "cilium")
"""Beginnings of the names of interfaces that lead nowhere, those of containers and virtual machines."""
NETWORK_VARIABLES: dict[str, dict[str, str]] = {
    "auto": {},
    "ethernet": {"NCCL_NET": "Socket", "NCCL_SOCKET_IFNAME": "^" + ",".join(VIRTUAL_INTERFACES)},
    "infiniband": {"NCCL_NET": "IB"},  # RoCE too; an error if there is none
    "efa": {
        "FI_PROVIDER": "efa",  # otherwise libfabric falls back on TCP
        "FI_EFA_FORK_SAFE": "1",  # data loaders fork; Linux before 5.15 needs it
        "FI_EFA_USE_HUGE_PAGE": "0",  # a fork fails if huge pages run out
    },
}


def inherited() -> dict[str, str]:
    """This process's own variables, without those that another launcher gave it."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}


def defaults(job: Job) -> dict[str, str]:
    """Variables of the ranks, unless job.environment sets them."""
    return ({} if job.gpus_per_node else {"DS_ACCELERATOR": "cpu"}) | NETWORK_VARIABLES[job.network]


def added(job: Job) -> dict[str, str]:
    """Variables that the job gives its ranks; a secret by reference is not read yet."""
    return defaults(job) | job.environment


def for_process(job: Job) -> dict[str, str]:
    """The same for a process that is started here, with secrets read."""
    return read_references(added(job))


def read_references(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables, with each `env:NAME` replaced from this process's own environment.

    Raises:
        UserError: a variable that is referred to is not set.
    """
    check_references(environment, "environment")
    return {name: os.environ.get(referred(value), value) for name, value in environment.items()}


def check_references(environment: Mapping[str, str], where: str) -> None:
    """Raises `UserError` if a variable that is referred to is not set here."""
    for name, value in environment.items():
        if (other := referred(value)) and other not in os.environ:
            raise UserError(f"{where}.{name} is {value!r}, and {other} is not set: export it before this command.")


def referred(value: str) -> str:
    """The variable that a value refers to; "" if it is not a reference."""
    found = REFERENCE.fullmatch(value)
    return found[1] if found else ""


def python(job: Job) -> Path:
    """The interpreter on the nodes, or in the container."""
    if job.container:
        return Path("python")
    return Path(job.venv).absolute() / "bin/python" if job.venv else Path(sys.executable)
