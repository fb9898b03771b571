"""The driver of a pipeline on Ray is killed: its steps save and end, and the next submission resumes them.

It takes minutes: a campaign.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cluster.pipeline_fixture import states, training_pipeline
from tests.cluster.ray_fixture import RayCluster, cannot_run_here, command_on_ray, ray_cluster  # noqa: F401 - fixtures
from tests.cluster.slurm_fixture import wait_for

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(cannot_run_here() is not None, reason=str(cannot_run_here())),
]
STEPS = 60
LONG = """
[[step]]
name = "long"
kind = "command"
command = ["sh", "-c", '''test -e {folder}/saved && exec touch {folder}/made
trap 'kill $!; echo saved >{folder}/saved; exit 75' TERM; sleep 6000 & touch {folder}/begun; wait''']
writes = ["{folder}/made"]
"""
Cluster = Callable[..., str]


@pytest.fixture
def driven(tmp_path: Path, scenes: Path) -> Path:
    """A pipeline with two concurrent steps: training, and a command that saves when it is told to end."""
    settings = [f"train.steps={STEPS}", "checkpoint.every=1000"]
    return training_pipeline(tmp_path, "driven", scenes, 1, settings, LONG)


def test_the_steps_of_a_killed_driver_save_and_end(cluster: RayCluster, on_ray: Cluster, driven: Path) -> None:
    folder = driven.parent
    metrics = folder / "run/metrics.jsonl"
    on_ray("submit", driven, "--on", "ray")
    wait_for((folder / "begun").exists)
    wait_for(lambda: metrics.exists() and '"step": 3,' in metrics.read_text())
    [driver] = processes_with("cluster.pipeline.ray_driver", str(folder / "logs"))
    driver.kill()
    began = time.monotonic()
    wait_for(lambda: not left_of(folder))
    print("seconds until all had ended:", round(time.monotonic() - began, 1))
    assert (folder / "saved").read_text() == "saved\n"
    reached = int((folder / "run/checkpoints/latest").read_text().split("_")[1])
    assert 3 <= reached < STEPS
    on_ray("submit", driven, "--on", "ray")
    wait_for(lambda: states(on_ray, driven) == {"train": "done", "long": "done"})
    steps = [line["step"] for line in map(json.loads, metrics.read_text().splitlines()) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))  # none was made twice


def processes_with(*words: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if set(words) <= set(process.cmdline()) and process.cmdline()[0] != "/bin/sh":
                found.append(process)
        except psutil.Error:
            continue
    return found


def left_of(folder: Path) -> list[str]:
    """The processes of the steps and of their supervisors."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join([*process.cmdline(), process.environ().get("MVLM_JOB_LOG", "")]):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
