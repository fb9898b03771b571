"""What a rank can tell of its node by itself."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from mvlm import __version__
from mvlm.check.folders import nearest
from mvlm.check.nodes.fabric import read_fabric
from mvlm.check.nodes.measure import matmul_flops
from mvlm.runtime import dist


@dataclass(frozen=True)
class RankFacts:
    """What one rank reports."""

    host: str
    versions: dict[str, str]
    device: str  # the GPU's model, or "cpu"
    devices: int  # that the rank sees
    clock: float  # seconds since the epoch, when all ranks were asked at once
    free_bytes: int  # where the run folder is, or will be
    flops: float
    # as in `NodeFabric`
    links: int = 0
    link_rate: float = 0.0
    sockets: str = ""


def gather_facts(host: str, run: Path, clock: float) -> RankFacts:
    """Takes half a second, to measure the device's speed."""
    gpu = dist.uses_cuda()
    versions = {"mvlm": __version__, "python": sys.version.split()[0]}
    versions |= {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    if gpu:
        versions["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    device = torch.cuda.get_device_name(dist.device()) if gpu else "cpu"
    devices = torch.cuda.device_count() if gpu else 1
    free = shutil.disk_usage(nearest(run)).free
    fabric = asdict(read_fabric(os.environ.get("MASTER_ADDR", "localhost")))
    return RankFacts(host, versions, device, devices, clock, free, matmul_flops(), **fabric)


def expected_hosts() -> dict[int, str]:
    """The host of each rank if the launcher tells it, as SLURM does, by blocks of ranks; otherwise empty."""
    nodes, tasks = os.environ.get("SLURM_STEP_NODELIST"), os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if not nodes:
        return {}
    hosts: list[str] = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ["scontrol", "show", "hostnames", nodes]
        hosts = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.split()
    counts = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks) for _ in range(int(times or 1))]
    return dict(enumerate(host for host, count in zip(hosts, counts, strict=False) for _ in range(count)))
