"""Small pipelines on a real SLURM and a real Ray of several nodes: with parts and a mistake, and with training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.pipeline_fixture import Cluster, course, small_pipeline, training_pipeline, wait_until  # noqa: F401 - a fixture
from tests.cluster.ray_fixture import cannot_run_here, command_on_ray, ray_cluster  # noqa: F401 - fixtures
from tests.cluster.slurm_fixture import SlurmCluster, wait_for
from tests.conftest import ROOT, TINY, mvlm_command, run_command

pytestmark = pytest.mark.campaign
EMOJI = ("shards", "train", "retrieval", "reconstruction", "index", "export")
AFTER_TRAINING = """
[[step]]
name = "retrieval"
kind = "evaluate"
command = ["retrieval", "--checkpoint", "{folder}/run", "--data", "{scenes}/eval"]
writes = ["{folder}/retrieval.json"]
nodes = 2

[[step]]
name = "index"
kind = "index"
command = ["{scenes}/eval", "--checkpoint", "{folder}/run"]
writes = ["{folder}/index"]
processes = 2
cpus = 2
"""


@pytest.fixture
def learns(tmp_path: Path, scenes: Path) -> Path:
    """A pipeline whose steps have two ranks each, on two nodes and on one."""
    settings = ["train.steps=4", "checkpoint.every=2"]
    return training_pipeline(tmp_path, "learns", scenes, 2, settings, AFTER_TRAINING)


def course_of_training(cluster: Cluster, pipeline: Path, backend: str, scenes: Path) -> None:
    """Train, evaluate and index with two ranks each; one rank gives the same bytes."""
    folder = pipeline.parent
    cluster("submit", pipeline, "--on", backend)
    wait_until(cluster, pipeline, {"train": "done", "retrieval": "done", "index": "done"})
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert json.loads((folder / "run/run.json").read_text())["world"] == 2
    for name in ("train", "retrieval", "index"):
        assert len(list((folder / "logs" / name / "job/attempt-001").glob("rank-*.log"))) == 2
    own = ["--checkpoint", str(folder / "run")]
    alone = ["evaluate", "retrieval", *own, "--data", str(scenes / "eval"), "--json", str(folder / "alone.json")]
    for words in (alone, ["index", str(scenes / "eval"), *own, "--out", str(folder / "alone")]):
        done = run_command(mvlm_command(*words, launcher=False))
        assert done.returncode == 0, done.stderr
    assert (folder / "retrieval.json").read_bytes() == (folder / "alone.json").read_bytes()
    for path in (folder / "alone").iterdir():
        assert (folder / "index" / path.name).read_bytes() == path.read_bytes()
    assert "nothing to do" in cluster("submit", pipeline, "--on", backend)


PATIENT = """
[pipeline]
name = "patient"
logs = "{folder}/logs"

[[step]]
name = "long"
kind = "command"
command = ["sh", "-c", "trap 'echo saved >{folder}/saved; exit 75' TERM; touch {folder}/begun; sleep 600 & wait"]
writes = ["{folder}/made"]

[[step]]
name = "crowded"
kind = "command"
command = ["touch", "{folder}/other"]
writes = ["{folder}/other"]
cpus = 8
"""


def course_of_a_cancelled_step(cluster: Cluster, folder: Path, backend: str) -> None:
    """One step runs, and saves; another waits for CPUs that never come, and does not begin."""
    pipeline = folder / "patient.toml"
    pipeline.write_text(PATIENT.format(folder=folder))
    cluster("submit", pipeline, "--on", backend)
    wait_for((folder / "begun").exists)
    cluster("cancel", pipeline)
    wait_until(cluster, pipeline, {"long": "stopped", "crowded": "not run"})
    assert (folder / "saved").read_text() == "saved\n" and not (folder / "other").exists()


@pytest.fixture
def emoji(tmp_path: Path) -> Path:
    """The shipped pipeline whose data come with the code, in a folder of its own."""
    text = (ROOT / "cluster/pipelines/emoji.toml").read_text()
    assert text.count('"runs/emoji/') > 10
    path = tmp_path / "emoji.toml"
    path.write_text(
        text.replace('"runs/emoji/', f'"{tmp_path}/').replace("[pipeline]", f'[pipeline]\nlogs = "{tmp_path}/logs"')
    )
    return path


def course_of_emoji(cluster: Cluster, pipeline: Path, backend: str) -> None:
    """All six steps, by a tiny model that learns little."""
    tiny = [word for word in TINY if word.startswith("model.")]
    own = [*tiny, "data.vocabulary=300", "train.steps=4", "train.global_batch=16", "eval.every=0", "eval.limit=64"]
    cluster("submit", pipeline, "--on", backend, *(f"train.settings.{word}" for word in own))
    wait_until(cluster, pipeline, dict.fromkeys(EMOJI, "done"))
    folder = pipeline.parent
    manifests = [json.loads((folder / "shards" / split / "manifest.json").read_text()) for split in ("train", "eval")]
    assert manifests[0]["rows"] > 1000 and manifests[1]["rows"] > 200
    assert json.loads((folder / "model/run.json").read_text())["world"] == 2
    assert json.loads((folder / "retrieval.json").read_text())["step"] == 4
    assert json.loads((folder / "reconstruction.json").read_text())["step"] == 4
    assert list((folder / "index").iterdir()) and list((folder / "exported").glob("*.safetensors"))


def test_a_shipped_pipeline_on_slurm(slurm: SlurmCluster, emoji: Path) -> None:
    course_of_emoji(slurm.cluster, emoji, "slurm")


def test_training_on_slurm(slurm: SlurmCluster, learns: Path, scenes: Path) -> None:
    course_of_training(slurm.cluster, learns, "slurm", scenes)


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_on_ray(on_ray: Cluster, pipeline: Path) -> None:
    course(on_ray, pipeline, "ray", "blocked")
    assert "nothing to do" in on_ray("submit", pipeline, "--on", "ray")


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_training_on_ray(on_ray: Cluster, learns: Path, scenes: Path) -> None:
    course_of_training(on_ray, learns, "ray", scenes)


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_a_shipped_pipeline_on_ray(on_ray: Cluster, emoji: Path) -> None:
    course_of_emoji(on_ray, emoji, "ray")


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_cancelled_on_ray(on_ray: Cluster, tmp_path: Path) -> None:
    course_of_a_cancelled_step(on_ray, tmp_path, "ray")
