"""Limits of the machine: each rank's share of the cores, unless the user has set it, quotas and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_tools.__main__ import parser
from mvlm.runtime import cpu as limits
from mvlm.runtime.cpu import available_memory, cpu_quota, share_cores


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(limits, "cpu_quota", lambda: 1 << 20)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 4),
        ({"LOCAL_SIZE": "4"}, 2),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        ({"SLURM_NTASKS_PER_NODE": "1"}, 8),
        ({"SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, None),
        ({"OMP_NUM_THREADS": "1", "LOCAL_SIZE": "2"}, None),
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, 4),
        ({"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, None),
    ],
)
def test_ranks_share_the_cores(eight_cores: None, environment: dict[str, str], threads: int | None) -> None:
    assert share_cores(2, environment) == threads


def test_a_quota_takes_precedence_over_the_cores(eight_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container on a large machine, where a process for each core would be too many."""
    monkeypatch.setattr(limits, "cpu_quota", lambda: 4)
    assert share_cores(2, {}) == 2
    assert parser().parse_args(["verify", "shards"]).workers == 4


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 1 << 20),
        ({"a/b/cpu.max": "max 100000"}, 1 << 20),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "350000 100000"}, 3),
        ({"a/b/cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "200000 100000", "a/cpu.max": "600000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1 << 20),
    ],
)
def test_the_smallest_quota_of_all_levels_counts(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    assert cpu_quota(tmp_path, own) == cores


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"a/b/memory.max": "max", "a/b/memory.current": "9"}, None),
        ({"a/b/memory.max": "1000", "a/b/memory.current": "400"}, 600),
        (
            {"a/b/memory.max": "1000", "a/b/memory.current": "400", "a/memory.max": "900", "a/memory.current": "800"},
            100,
        ),
        ({"memory/memory.limit_in_bytes": "5000", "memory/memory.usage_in_bytes": "6000"}, 0),
    ],
)
def test_the_least_memory_left_at_any_level_counts(tmp_path: Path, files: dict[str, str], left: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    found = available_memory(tmp_path, own)
    assert found == left if left is not None else found > 1 << 20  # this machine's own
