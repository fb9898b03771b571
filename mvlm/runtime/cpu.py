"""How many cores a rank may use, how much memory is available, and whether freed memory is kept."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

PER_NODE = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")
"""Variables in which torchrun, deepspeed and srun say how many ranks a machine has."""
M_TRIM_THRESHOLD, M_MMAP_MAX, NEVER = -1, -4, 2**31 - 1
"""Constants of glibc's malloc.h."""


def share_cores(ranks: int, environment: Mapping[str, str] = os.environ) -> int | None:
    """Threads for this rank, so that the ranks of a machine share its cores; None if the user has set how many.

    Args:
        ranks: in all; taken to be on this machine if the launcher does not say how many are.
    """
    here = next((int(environment[name]) for name in PER_NODE if environment.get(name, "").isdigit()), ranks)
    given = environment.get("OMP_NUM_THREADS")
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment and here > 1 and given == "1"  # torchrun sets it unasked
    if given and not by_torchrun:
        return None
    if environment.get("SLURM_CPUS_PER_TASK", "").isdigit():  # the task is bound to them
        return max(1, min(cores(), int(environment["SLURM_CPUS_PER_TASK"])))
    return max(1, cores() // here)


def cores() -> int:
    """The cores that this process may use: those it is bound to, or its container's quota if that is less."""
    return min(len(os.sched_getaffinity(0)), cpu_quota())


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Whole cores' worth of time that a container or a scheduler grants; a large number if it sets no limit.

    In cgroups version 2 every level may set one; in version 1 the container's own is seen at the root.
    """
    quotas = [math.inf, _ratio(_read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us"))]
    quotas += [_ratio(*(_read(level / "cpu.max").split() or ["max", ""])) for level in _cgroups(root, own)]
    return max(1, math.floor(min(min(quotas), 1 << 20)))


def available_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes still available on this machine, or to this container if that is less."""
    rooms = [psutil.virtual_memory().available]
    rooms.append(_room(root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"))
    rooms += [_room(level / "memory.max", level / "memory.current") for level in _cgroups(root, own)]
    return max(0, min(rooms))


def keep_freed_memory() -> bool:
    """Have the C library keep freed tensors' memory for the next ones; returns whether it can.

    By default glibc gives each large block back to the kernel, which then clears every page of the next one: a step of
    a small ViT takes 45,000 page faults, and this way none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def _cgroups(root: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's version 2 cgroup and of all above it."""
    relative = next((line[3:] for line in _read(own).splitlines() if line.startswith("0::")), "/")
    folder = root / relative.lstrip("/")
    for level in (folder, *folder.parents):
        yield level
        if level == root:
            return


def _room(limit: Path, used: Path) -> int:
    most, now = _read(limit).strip(), _read(used).strip()
    return int(most) - int(now) if most.isdigit() and now.isdigit() else 1 << 60


def _ratio(quota: str, period: str) -> float:
    return int(quota) / int(period) if quota.strip().isdigit() and period.strip().isdigit() else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
