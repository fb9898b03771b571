"""Sixteen ranks of the tiny model through each real launcher: minutes of start-up, so a campaign."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ray_fixture import RayCluster, RayJob, cannot_run_here
from tests.cluster.slurm_fixture import SlurmCluster, SlurmJob
from tests.conftest import ROOT, TINY, mvlm_command, run_command
from tests.ranks import mvlm, run_ranks

pytestmark = pytest.mark.campaign
RANKS, STEPS = 16, 2
OTHER_LAYOUT = 1e-4  # relative, of losses at another number of ranks
SETTINGS = [
    *TINY,
    "train.global_batch=32",
    f"train.steps={STEPS}",
    "optim.lr=1e-4",
    "optim.encoder_lr=1e-4",
    "checkpoint.every=0",
]
LOSSES = ("loss", "image", "text", "itc", "itm")


def losses(run: Path) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in LOSSES] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The losses of one rank, to which those of sixteen are close."""
    run = tmp_path_factory.mktemp("alone") / "run"
    done = run_ranks(mvlm, *words(scenes, run))
    assert done.returncode == 0, done.stderr
    return [pytest.approx(step, rel=OTHER_LAYOUT) for step in losses(run)]


def words(scenes: Path, run: Path) -> list[str]:
    command = ["train", "mvlm/configs/tiny.toml", "--deepspeed_config", "ds_configs/cpu.json"]
    return [*command, *SETTINGS, f"data.train={scenes / 'train'}", f"run.dir={run}"]


def check(run: Path, alone: Any) -> None:
    assert json.loads((run / "run.json").read_text())["world"] == RANKS
    assert len(alone) == STEPS and losses(run) == alone


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_on_this_machine(scenes: Path, tmp_path: Path, alone: Any, launcher: str) -> None:
    asked = words(scenes, tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command = mvlm_command(*asked, ranks=RANKS) if launcher == "deepspeed" else [*torchrun, "-m", "mvlm", *asked]
    done = run_command(command, timeout=1800, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    check(tmp_path / "run", alone)


def test_on_slurm(
    slurm: SlurmCluster, scenes: Path, tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cluster.slurm_fixture.PATIENCE", 1800.0)
    job = SlurmJob(slurm, tmp_path / "job", scenes / "train")
    job.submit(*SETTINGS, "job.nodes=4", "job.processes_per_node=4", "job.cpus_per_process=1")
    assert job.end(1) == "0", job.said(1)
    check(job.run, alone)


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_on_ray(scenes: Path, tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    cluster = RayCluster(tmp_path / "ray", cpus=8)
    try:
        cluster.up()
        cluster.join("w1")
        job = RayJob(cluster, tmp_path, "sixteen", scenes / "train")
        job.submit(*SETTINGS, "job.processes_per_node=8", "job.cpus_per_process=1")
        job.wait("the end", lambda: job.attempts()[-1:] and job.attempts()[-1]["exit_code"] is not None, seconds=1800)
        assert [attempt["exit_code"] for attempt in job.attempts()] == [0], job.ask("logs").stdout[-3000:]
    finally:
        cluster.down()
    check(job.run, alone)
