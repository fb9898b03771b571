"""The probes by name, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mvlm.check.machine import (
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
from mvlm.check.machine.findings import Finding, Options


@dataclass(frozen=True)
class Probe:
    """
    Args:
        find: what it finds.
        seconds: after which it hangs, on a machine that is not busy: ten times and more what it takes there.
    """

    find: Callable[[Options], Iterator[Finding]]
    seconds: float


PROBES = {
    "packages": Probe(packages.find, 20),
    "torch": Probe(devices.find, 60),
    "compiler": Probe(extensions.find_compiler, 60),
    "locks": Probe(extensions.find_locks, 20),
    "deepspeed": Probe(deepspeed_ops.find, 90),
    "apex": Probe(extensions.find_apex, 60),
    "triton": Probe(triton_kernels.find, 120),
    "exchange": Probe(exchange.find, 100),
    "slurm": Probe(schedulers.find_slurm, 20),
    "ray": Probe(schedulers.find_ray, 80),
    "jpeg": Probe(data.find_decoder, 30),
    "shards": Probe(data.find_shards, 300),
    "storage": Probe(storage.find, 90),
    "clock": Probe(storage.find_clock, 20),
}
