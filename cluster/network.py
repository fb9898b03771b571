"""Variables of NCCL and gloo by kind of network."""

from __future__ import annotations

VARIABLES: dict[str, dict[str, str]] = {
    "auto": {},
    "ethernet": {"NCCL_IB_DISABLE": "1"},
    "efa": {"FI_PROVIDER": "efa"},
    "infiniband": {"NCCL_IB_DISABLE": "0"},
}


def variables(network: str) -> dict[str, str]:
    """What the ranks are given for job.network."""
    return dict(VARIABLES[network])
