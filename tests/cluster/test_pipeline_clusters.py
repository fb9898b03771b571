"""Small pipelines on a real SLURM and a real Ray of several nodes: with parts and a mistake, and with training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mvlm.config.toml import as_toml
from tests.cluster.ray_fixture import cannot_run_here, command_on_ray, ray_cluster  # noqa: F401 - fixtures
from tests.cluster.slurm_fixture import SlurmCluster
from tests.conftest import ROOT, TINY, mvlm_command, run_command

pytestmark = pytest.mark.campaign
IMAGES = 6
EMOJI = ("shards", "train", "retrieval", "reconstruction", "index", "export")
PIPELINE = """
[pipeline]
name = "small"
logs = "{folder}/logs"
environment = {{ OMP_NUM_THREADS = "1" }}

[[step]]
name = "shards"
kind = "shard"
command = ["folder", "{folder}/in", "--shard-mb", "0.001"]
reads = ["{folder}/in"]
writes = ["{folder}/shards"]
parts = 2

[[step]]
name = "listed"
kind = "command"
command = ["sh", "-c", 'ls "$0" >{folder}/listed', "{folder}/shards"]
writes = ["{folder}/listed"]

[[step]]
name = "mistake"
kind = "command"
command = ["sh", "-c", 'test -e {folder}/mended && cp "$0" {folder}/copy', "{folder}/listed"]
writes = ["{folder}/copy"]

[[step]]
name = "behind"
kind = "command"
command = ["cp", "{folder}/copy", "{folder}/last"]
writes = ["{folder}/last"]
"""
TRAINING = """
[pipeline]
name = "learns"
logs = "{folder}/logs"
environment = {{ OMP_NUM_THREADS = "1" }}

[[step]]
name = "train"
kind = "train"
run = "mvlm/configs/tiny.toml"
deepspeed = "ds_configs/cpu.json"
writes = ["{folder}/run"]
nodes = 2

[step.settings]
{settings}

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
Cluster = Callable[..., str]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    images = tmp_path / "in/images"
    images.mkdir(parents=True)
    lines = []
    for number in range(IMAGES):
        Image.new("RGB", (24, 24), (40 * number, 10, 200)).save(images / f"{number}.jpg")
        lines.append(json.dumps({"id": str(number), "image": f"images/{number}.jpg", "captions": [f"colour {number}"]}))
    (tmp_path / "in/captions.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "small.toml"
    path.write_text(PIPELINE.format(folder=tmp_path))
    return path


def states(cluster: Cluster, pipeline: Path) -> dict[str, str]:
    return {one["name"]: one["state"] for one in json.loads(cluster("status", "--json", pipeline))["steps"]}


def wait_until(cluster: Cluster, pipeline: Path, wanted: dict[str, str]) -> None:
    deadline = time.monotonic() + 900
    while (found := states(cluster, pipeline)) != wanted:
        logs = {str(path): path.read_text()[-500:] for path in pipeline.parent.glob("logs/*/**/*.log")}
        assert time.monotonic() < deadline, (found, logs)
        time.sleep(1)


def course(cluster: Cluster, pipeline: Path, backend: str, behind: str) -> None:
    """Submitted, failed at a mistake, mended, and done again from there.

    Args:
        behind: the state of what stands behind the step that failed.
    """
    folder = pipeline.parent
    cluster("submit", pipeline, "--on", backend)
    done = {"shards": "done", "listed": "done"}
    wait_until(cluster, pipeline, done | {"mistake": "failed", "behind": behind})
    assert json.loads((folder / "shards/manifest.json").read_text())["rows"] == IMAGES
    parts = [folder / f"logs/shards/part-0000{part}/job.json" for part in (1, 2)]
    assert all(json.loads(path.read_text())["attempts"][-1]["exit_code"] == 0 for path in parts)
    (folder / "mended").touch()
    cluster("rerun", pipeline, "mistake")
    wait_until(cluster, pipeline, {"shards": "unchanged", "listed": "unchanged", "mistake": "done", "behind": "done"})
    assert "manifest.json" in (folder / "last").read_text()
    assert "nothing to do" in cluster("submit", pipeline, "--on", backend)


@pytest.fixture
def learns(tmp_path: Path, scenes: Path) -> Path:
    """A pipeline whose steps have two ranks each, on two nodes and on one."""
    tiny = [word.replace("=global", '="global"') for word in TINY]  # strings of a file have quotes
    words = [*tiny, f"data.train={as_toml(str(scenes / 'train'))}", "train.steps=4", "checkpoint.every=2"]
    path = tmp_path / "learns.toml"
    path.write_text(TRAINING.format(folder=tmp_path, scenes=scenes, settings="\n".join(words)))
    return path


def course_of_training(cluster: Cluster, pipeline: Path, backend: str, scenes: Path) -> None:
    """Trained, evaluated and indexed by two ranks each, and the same to the last byte by one."""
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


def test_on_slurm(slurm: SlurmCluster, pipeline: Path) -> None:
    course(slurm.cluster, pipeline, "slurm", "failed")
    assert slurm.on("squeue", "--noheader").stdout == ""


def test_training_on_slurm(slurm: SlurmCluster, learns: Path, scenes: Path) -> None:
    course_of_training(slurm.cluster, learns, "slurm", scenes)


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_on_ray(on_ray: Cluster, pipeline: Path) -> None:
    course(on_ray, pipeline, "ray", "blocked")


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_training_on_ray(on_ray: Cluster, learns: Path, scenes: Path) -> None:
    course_of_training(on_ray, learns, "ray", scenes)


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_a_shipped_pipeline_on_ray(on_ray: Cluster, emoji: Path) -> None:
    course_of_emoji(on_ray, emoji, "ray")
