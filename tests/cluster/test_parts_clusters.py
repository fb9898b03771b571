"""Jobs that make shards and score them, on a real SLURM and a real Ray of several nodes: the bytes of this machine."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.ray_fixture import RayCluster, cannot_run_here, ray_cluster  # noqa: F401 - a fixture
from tests.cluster.slurm_fixture import SlurmCluster
from tests.conftest import run_command
from tests.data_tools.made import photo, quarantine, tree, write_folder

pytestmark = pytest.mark.campaign
TASKS = 3
SHARDING = ["--shard-mb", "0.01", "--dedup", "exact", "--tolerate", "1"]
SCORING = ["--batch", "4", "--clusters", "3"]
Cluster = Callable[..., str]


def here(*words: object) -> str:
    """`python -m cluster` on this machine."""
    done = run_command([sys.executable, "-m", "cluster", *map(str, words)])
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures, one of them broken and one a copy of another that must fall into a different part."""
    folder = tmp_path / "in"
    write_folder(folder, 40)
    (folder / "images/7.jpg").write_bytes(b"<html>404</html>")
    (folder / "images/35.jpg").write_bytes(photo(3, size=(27, 18)))
    return folder


class Jobs:
    """A job run to its end on one back-end, in a folder of its own."""

    def __init__(self, folder: Path, cluster: Cluster, backend: str) -> None:
        self.folder, self._cluster, self._backend = folder, cluster, backend
        folder.mkdir()

    def done(self, table: str, *command: object) -> str:
        """Everything the job's tasks printed."""
        file, logs = self.folder / f"{table}.toml", self.folder / f"{table}-logs"
        words = json.dumps([str(word) for word in command])
        lines = [f"[{table}]", f'name = "{table}-{self._backend}"', f"tasks = {TASKS}", f"command = {words}"]
        file.write_text("\n".join([*lines, f'logs = "{logs}"', 'environment = { OMP_NUM_THREADS = "1" }']) + "\n")
        said = self._cluster("submit", file, "--on", self._backend)
        if self._backend == "local":
            return said
        deadline = time.monotonic() + 600
        while json.loads(self._cluster("status", "--json", file))["active"]:
            assert time.monotonic() < deadline, self._cluster("logs", file)
            time.sleep(1)
        return self._cluster("logs", file)

    def shards(self, source: Path) -> dict[str, bytes]:
        said = self.done("shard", "folder", source, *SHARDING, "--out", self.folder / "shards")
        assert (self.folder / "shards").is_dir(), said
        return tree(self.folder / "shards")

    def scores(self, shards: Path, trained: Path) -> tuple[dict[str, bytes], str]:
        shutil.copytree(shards, self.folder / "scored")
        said = self.done("score", self.folder / "scored", "--checkpoint", trained, *SCORING)
        return tree(self.folder / "scored"), said


def course(folder: Path, cluster: Cluster, backend: str, source: Path, trained: Path) -> str:
    """Shard and score the same pictures here and there; what the scoring tasks printed there."""
    alone, there = Jobs(folder / "alone", here, "local"), Jobs(folder / backend, cluster, backend)
    made = alone.shards(source)
    assert len(quarantine(folder / "alone/shards")) == 2
    assert len([name for name in made if name.endswith(".arrow")]) > TASKS
    assert there.shards(source) == made
    scored, _ = alone.scores(folder / "alone/shards", trained)
    assert len([name for name in scored if name.endswith(".clusters.parquet")]) > TASKS
    found, said = there.scores(folder / "alone/shards", trained)
    assert found == scored, said
    return said


def test_on_slurm(slurm: SlurmCluster, tmp_path: Path, source: Path, trained: Path) -> None:
    said = course(tmp_path, slurm.cluster, "slurm", source, trained)
    for name in ("parts-1", "parts-2", "parts-3", "join"):
        assert f"==> {name}.log <==" in said
    assert slurm.on("squeue", "--noheader").stdout == ""


@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
def test_on_ray(cluster: RayCluster, tmp_path: Path, source: Path, trained: Path) -> None:
    cluster.join("w1")

    def on_head(*words: object) -> str:
        done = cluster.on_head("cluster", *words)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    said = course(tmp_path, on_head, "ray", source, trained)
    for part in range(1, TASKS + 1):
        assert f"part {part} of {TASKS}: exit code 0" in said
