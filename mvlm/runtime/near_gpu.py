"""Cores near a rank's GPU: those of the NUMA node that its PCI Express lanes lead to."""

from __future__ import annotations

import os
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")


def stay_near(address: str, folder: Path = PCI) -> bool:
    """Bind this process, and those that it starts, to those of its cores that are near a PCI device.

    Memory comes from the NUMA node of the core that first writes to it, so it follows.

    Args:
        address: of the device, such as "0000:dc:00.0".
        folder: where Linux lists devices.

    Returns:
        False if it has none of the near cores. It then keeps those that it has, as it also does, with True, if Linux
        does not know which are near.
    """
    try:
        near = cores_of((folder / address / "local_cpulist").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return True
    if own := near & os.sched_getaffinity(0):
        os.sched_setaffinity(0, own)
    return bool(own)


def cores_of(text: str) -> set[int]:
    """The cores of a list as Linux writes it: "0-3,8" is {0, 1, 2, 3, 8}; raises ValueError if it is no such list."""
    spans = (span.partition("-") for span in text.strip().split(",") if span)
    return {core for first, _, last in spans for core in range(int(first), int(last or first) + 1)}
