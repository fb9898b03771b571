"""What NCCL is told of the network that a job file names.

With "auto" nothing: NCCL finds InfiniBand, RoCE and the plugin for EFA by itself and falls back on sockets where it
finds none. Naming the network means that a run which would crawl over the wrong one ends at its start instead.
What depends on the node, such as the interface that gloo takes, is chosen there by the rank, which prints all of it.

Sources: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html,
https://github.com/aws-samples/awsome-distributed-training (EFA cheatsheet).
"""

from __future__ import annotations

VIRTUAL = ("lo", "docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "cilium")
"""First letters of interfaces that lead nowhere: of containers and of virtual machines."""

VARIABLES = {
    "auto": {},
    "ethernet": {
        "NCCL_NET": "Socket",
        "NCCL_SOCKET_IFNAME": "^" + ",".join(VIRTUAL),
    },
    "infiniband": {
        "NCCL_NET": "IB",  # RoCE too; an error where there is none
    },
    "efa": {
        "FI_PROVIDER": "efa",  # libfabric takes TCP where this fails
        "FI_EFA_FORK_SAFE": "1",  # data loaders fork; Linux before 5.15 asks for it
        "FI_EFA_USE_HUGE_PAGE": "0",  # a fork fails where huge pages run out
    },
}


def variables(network: str) -> dict[str, str]:
    """Environment variables for the ranks of a job; its own environment goes before them.

    Args:
        network: "auto", "ethernet", "efa" or "infiniband".
    """
    return dict(VARIABLES[network])
