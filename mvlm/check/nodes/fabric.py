"""This node's links to the others as Linux lists them, and whether NCCL could use them other than by TCP sockets."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mvlm.runtime import network

GIGABIT, MEGABIT = 1e9 / 8, 1e6 / 8
EFA_PLUGIN = "libnccl-net.so"
"""From the package aws-ofi-nccl; newer releases also install it as libnccl-net-ofi.so."""


@dataclass(frozen=True)
class NodeFabric:
    """
    Attributes:
        links: ports that are up: those of InfiniBand, RoCE or EFA adapters or, without any, the Ethernet interface.
        link_rate: what one of them is rated at, in bytes a second each way; 0 = not known, as for many virtual ones.
        sockets: why NCCL would use TCP sockets despite such an adapter; "" = no reason was found.
    """

    links: int = 0
    link_rate: float = 0.0
    sockets: str = ""


def read_fabric(
    towards: str,
    sys: Path = Path("/sys/class"),
    dev: Path = Path("/dev"),
    environment: Mapping[str, str] = os.environ,
    loads: Callable[[str], bool] | None = None,
) -> NodeFabric:
    """Read this node's.

    Args:
        towards: the host that the Ethernet interface leads to, which counts if there is no other adapter.
        loads: whether a shared library can be loaded.
    """
    devices = sorted((sys / "infiniband").iterdir()) if (sys / "infiniband").is_dir() else []
    rates = [rate for device in devices for rate in _rates(device)]
    if rates:
        reason = _why_sockets(devices, dev, environment, loads or _loads)
        return NodeFabric(len(rates), max(rates), reason)
    interface = network.interface_towards(towards)
    speed = _read(sys / "net" / (interface or "none") / "speed")
    return NodeFabric(1, int(speed) * MEGABIT) if speed.isdigit() else NodeFabric()


def _rates(device: Path) -> Iterator[float]:
    """Bytes a second of each port that is up."""
    for port in sorted(device.glob("ports/*")):
        rate = re.match(r"([\d.]+) Gb/sec", _read(port / "rate"))
        if rate and "ACTIVE" in _read(port / "state"):
            yield float(rate[1]) * GIGABIT


def _why_sockets(devices: list[Path], dev: Path, environment: Mapping[str, str], loads: Callable[[str], bool]) -> str:
    if environment.get("NCCL_IB_DISABLE") == "1":
        return "NCCL_IB_DISABLE=1 is set: unset it"
    if environment.get("NCCL_NET", "").lower() == "socket":
        return "NCCL_NET=Socket is set: unset it"
    if not any((dev / "infiniband").glob("uverbs*")):
        return "/dev/infiniband is not visible: give the container its devices (docker run --device /dev/infiniband)"
    if not loads("libibverbs.so.1"):
        return "libibverbs.so.1 cannot be loaded: install libibverbs1 and ibverbs-providers (rdma-core)"
    on_efa = any((device / "device/driver").resolve().name == "efa" for device in devices)
    if on_efa and not (loads(EFA_PLUGIN) or loads("libnccl-net-ofi.so")):
        return f"the adapters are EFA and {EFA_PLUGIN} cannot be loaded: install aws-ofi-nccl"
    return ""


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
