"""This node's network, and what gloo and NCCL are told of it unless the user has told them."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections import Counter
from pathlib import Path

import psutil

from mvlm.runtime.wording import counted

ADAPTERS = Path("/sys/class/infiniband")
PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "UCX_")
DISCARD = 9  # a port; nothing is sent there


def prepare() -> None:
    """Fill in the environment of this rank, before it joins a group that spans machines.

    gloo takes the address that the host's own name resolves to, on many systems 127.0.1.1; so it is told the interface
    that leads to MASTER_ADDR. NCCL chooses well by itself, and is only asked to say what goes wrong.
    """
    interface = interface_towards(os.environ.get("MASTER_ADDR", "localhost"))
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_DEBUG", "WARN")


def describe() -> str:
    """One line: the adapters of this node, and every variable that bears on them; "" if none is set."""
    known = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)]
    return f"network: {adapters()}; {' '.join(known)}" if known else ""


def adapters(folder: Path = ADAPTERS) -> str:
    """This node's, such as "8 InfiniBand adapters", "4 EFA adapters" or "Ethernet".

    Args:
        folder: where Linux lists devices that can write into the memory of another node.
    """
    kinds = Counter(_kind(device) for device in folder.iterdir()) if folder.is_dir() else Counter()
    named = [counted(count, f"{kind} adapter") for kind, count in sorted(kinds.items())]
    return ", ".join(named) or "Ethernet"


def _kind(device: Path) -> str:
    if (device / "device/driver").resolve().name == "efa":
        return "EFA"
    layers = {path.read_text().strip() for path in device.glob("ports/*/link_layer")}
    return "InfiniBand" if "InfiniBand" in layers else "RoCE"


def interface_towards(host: str) -> str | None:
    """Name of the interface through which packets to a host leave; None if that is this host itself, or unknown."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, DISCARD, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # chooses a route and sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(own.partition("%")[0]).is_loopback:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own.partition("%")[0] for entry in addresses):
            return name
    return None
