"""A small pipeline with parts and a mistake, and how it runs on a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mvlm.config.toml import as_toml
from tests.conftest import TINY

IMAGES = 6
SHARDS = """
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
"""
TRAINING = """
[pipeline]
name = "{name}"
logs = "{folder}/logs"
environment = {{ OMP_NUM_THREADS = "1" }}

[[step]]
name = "train"
kind = "train"
run = "mvlm/configs/tiny.toml"
deepspeed = "ds_configs/cpu.json"
writes = ["{folder}/run"]
nodes = {nodes}

[step.settings]
{settings}
"""
PIPELINE = (
    SHARDS
    + """
[[step]]
name = "mistake"
kind = "command"
command = ["sh", "-c", 'test -e {folder}/mended && ls "$0" >{folder}/copy', "{folder}/shards"]
writes = ["{folder}/copy"]

[[step]]
name = "behind"
kind = "command"
command = ["cp", "{folder}/copy", "{folder}/last"]
writes = ["{folder}/last"]
"""
)
Cluster = Callable[..., str]


@pytest.fixture(name="pipeline")
def small_pipeline(tmp_path: Path) -> Path:
    write_images(tmp_path / "in")
    path = tmp_path / "small.toml"
    path.write_text(PIPELINE.format(folder=tmp_path))
    return path


def write_images(folder: Path) -> None:
    """Images with captions, as `mvlm-data shard folder` reads them."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(IMAGES):
        Image.new("RGB", (24, 24), (40 * number, 10, 200)).save(folder / f"images/{number}.jpg")
        lines.append(json.dumps({"id": str(number), "image": f"images/{number}.jpg", "captions": [f"colour {number}"]}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def states(cluster: Cluster, pipeline: Path) -> dict[str, str]:
    return {one["name"]: one["state"] for one in json.loads(cluster("status", "--json", pipeline))["steps"]}


def wait_until(cluster: Cluster, pipeline: Path, wanted: dict[str, str]) -> None:
    deadline = time.monotonic() + 900
    while (found := states(cluster, pipeline)) != wanted:
        logs = {str(path): path.read_text()[-500:] for path in pipeline.parent.glob("logs/*/**/*.log")}
        assert time.monotonic() < deadline, (found, logs)
        time.sleep(1)


def course(cluster: Cluster, pipeline: Path, backend: str, behind: str) -> None:
    """Submit a pipeline that fails at a mistake, mend it, and rerun it from there.

    Args:
        behind: the state of the step behind the one that failed.
    """
    folder = pipeline.parent
    cluster("submit", pipeline, "--on", backend)
    wait_until(cluster, pipeline, {"shards": "done", "mistake": "failed", "behind": behind})
    assert json.loads((folder / "shards/manifest.json").read_text())["rows"] == IMAGES
    parts = [folder / f"logs/shards/part-0000{part}/job.json" for part in (1, 2)]
    assert all(json.loads(path.read_text())["attempts"][-1]["exit_code"] == 0 for path in parts)
    (folder / "mended").touch()
    cluster("rerun", pipeline, "mistake")
    wait_until(cluster, pipeline, {"shards": "unchanged", "mistake": "done", "behind": "done"})
    assert "manifest.json" in (folder / "last").read_text()


def training_pipeline(folder: Path, name: str, scenes: Path, nodes: int, settings: list[str], others: str) -> Path:
    """The file of a pipeline that trains the tiny model on scenes, and of its other steps."""
    tiny = [word.replace("=global", '="global"') for word in TINY]  # strings of a file have quotes
    words = [*tiny, f"data.train={as_toml(str(scenes / 'train'))}", *settings]
    path = folder / f"{name}.toml"
    text = (TRAINING + others).format(name=name, folder=folder, scenes=scenes, nodes=nodes, settings="\n".join(words))
    path.write_text(text)
    return path
