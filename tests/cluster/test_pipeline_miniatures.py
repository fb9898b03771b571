"""The shipped pipelines for icons, the paper and the web, at miniature size.

Here: what they shard, filter and are configured by. As a campaign: all of them, on a real SLURM and a real Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest

from cluster.pipeline import ray, slurm
from cluster.pipeline.file import BY_RUN, load_pipeline
from cluster.pipeline.graph import Graph
from cluster.pipeline.words import program_words
from data_tools.__main__ import main
from mvlm.config.load import load_config
from mvlm.config.shipped import find_file
from tests.cluster.miniatures import LINKS, MISSING, OF_A_SET, PORT, SETS, STYLES, overrides, shipped, write_links
from tests.cluster.pipeline_fixture import states
from tests.cluster.ray_fixture import RayCluster, cannot_run_here, command_on_ray, ray_cluster  # noqa: F401 - fixtures
from tests.cluster.slurm_fixture import SlurmCluster
from tests.conftest import ROOT

NODES = str(ROOT / "tests/cluster/nodes.sh")
SERVER = [sys.executable, str(ROOT / "tests/data_tools/image_server.py")]
PATIENCE = 3600.0
NAMES = ("icons", "web", "4m")
RESULTS = {
    "icons": ["runs/icons/retrieval.json", "runs/icons/opposites.json"],
    "web": ["runs/web/retrieval.json"],
    "4m": [f"runs/{corpus}_{how}.json" for corpus in ("coco", "flickr30k") for how in ("zero_shot", "finetuned")],
}
SHARDS = {"icons": "shards/icons/pairs", "web": "shards/web", "4m": "shards/coco_test"}
EXPECTED = {"icons": SETS * OF_A_SET * len(STYLES), "web": LINKS - MISSING, "4m": 8}
EXPORTED = {"icons": "runs/icons/exported", "web": "exported/web", "4m": "exported/4m"}


@pytest.mark.parametrize("name", NAMES)
def test_both_schedulers_take_a_miniature_and_each_of_its_runs_is_a_valid_configuration(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = shipped(name, tmp_path)
    graph = Graph(load_pipeline(path, overrides(path)))
    assert slurm.check(graph) == [] and ray.check(graph) == []
    for step in graph.pipeline.steps.values():
        assert step.gpus == 0
        if step.kind in BY_RUN:
            assert load_config(find_file(step.run, "configs"), step.overrides).model.image_size == 32


@pytest.mark.parametrize("name", ["icons", "web"])
def test_the_later_steps_of_a_pipeline_read_the_shards_it_makes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own commands, in this process."""
    monkeypatch.chdir(ROOT)
    path = shipped(name, tmp_path)
    graph = Graph(load_pipeline(path, overrides(path)))
    steps = [graph.pipeline.steps[step] for step in graph.order]
    with images_served(tmp_path / "data") if name == "web" else nullcontext():
        for step in steps:
            if step.kind in ("shard", "filter"):
                assert main(program_words(step)[1:]) == 0
    for step in steps:
        for place in graph.reads[step.name]:
            if "/shards/" in place:
                assert list(Path(place).rglob("manifest.json")), f"{step.name} reads {place}"
    assert rows(tmp_path / SHARDS[name]) == EXPECTED[name]


@contextmanager
def images_served(data: Path) -> Iterator[None]:
    """On a free port, which is then written into the links."""
    with subprocess.Popen([*SERVER, data / "images"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        write_links(data, int(server.stdout.readline()))
        try:
            yield
        finally:
            server.kill()


def rows(folder: Path) -> int:
    """The number in all parts of a corpus, including those taken down."""
    return sum(int(json.loads(path.read_text())["rows"]) for path in folder.rglob("manifest.json"))


Cluster = Callable[..., str]


def course(cluster: Cluster, path: Path, backend: str) -> None:
    """Run all steps once; a second submission has nothing to do."""
    name, folder, words = path.stem, path.parent, overrides(path)
    cluster("submit", path, "--on", backend, *words)
    deadline, names = time.monotonic() + PATIENCE, list(load_pipeline(path).steps)
    while (found := states(cluster, path)) != dict.fromkeys(names, "done"):
        logs = {str(log): log.read_text()[-1500:] for log in (folder / "logs").rglob("*.log")}
        assert not set(found.values()) & {"failed", "stopped", "blocked"}, (found, logs)
        assert time.monotonic() < deadline, (found, logs)
        time.sleep(10)
    for result in RESULTS[name]:
        assert json.loads((folder / result).read_text())["step"] > 0
    assert list((folder / EXPORTED[name]).glob("*.safetensors"))
    assert rows(folder / SHARDS[name]) == EXPECTED[name]
    assert "nothing to do" in cluster("submit", path, "--on", backend, *words)


@contextmanager
def images_on(nodes: Sequence[str], cluster: Path, images: Path) -> Iterator[None]:
    """Served on the loopback of each node, which is the only private address that is downloaded from."""
    words = [["bash", NODES, "on", str(cluster), node, *SERVER, str(images), str(PORT)] for node in nodes]
    servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in words]
    try:
        for server in servers:
            assert server.stdout and server.stdout.readline() == f"{PORT}\n"
        yield
    finally:
        for server in servers:
            for process in [*psutil.Process(server.pid).children(recursive=True), server]:
                process.kill()
            server.communicate()


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_on_slurm(slurm: SlurmCluster, name: str, tmp_path: Path) -> None:
    path, nodes = shipped(name, tmp_path), [f"n{number}" for number in range(1, 6)] if name == "web" else []
    with images_on(nodes, slurm.folder, tmp_path / "data/images"):
        course(slurm.cluster, path, "slurm")


@pytest.mark.campaign
@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_on_ray(cluster: RayCluster, on_ray: Cluster, name: str, tmp_path: Path) -> None:
    path, nodes = shipped(name, tmp_path), ["head", "w1"] if name == "web" else []
    with images_on(nodes, cluster.folder, tmp_path / "data/images"):
        course(on_ray, path, "ray")
