"""The probes by name, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mvlm.doctor import (
    data,
    deepspeed_ops,
    devices,
    exchange,
    extensions,
    packages,
    schedulers,
    storage,
    triton_kernels,
)
from mvlm.doctor.findings import Finding, Options


@dataclass(frozen=True)
class Probe:
    """
    Args:
        find: what it finds.
        seconds: after which it hangs; several times what it takes on a slow disk and a busy core.
    """

    find: Callable[[Options], Iterator[Finding]]
    seconds: float


PROBES = {
    "packages": Probe(packages.find, 30),
    "torch": Probe(devices.find, 120),
    "compiler": Probe(extensions.find_compiler, 60),
    "locks": Probe(extensions.find_locks, 30),
    "deepspeed": Probe(deepspeed_ops.find, 120),
    "apex": Probe(extensions.find_apex, 60),
    "triton": Probe(triton_kernels.find, 180),
    "exchange": Probe(exchange.find, 90),
    "slurm": Probe(schedulers.find_slurm, 30),
    "ray": Probe(schedulers.find_ray, 90),
    "jpeg": Probe(data.find_decoder, 60),
    "shards": Probe(data.find_shards, 300),
    "storage": Probe(storage.find, 90),
    "clock": Probe(storage.find_clock, 30),
}
