"""A real Ray with its state in a Redis loses its head, with the driver of a job, and gets it back: a campaign."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.cluster.ray_fixture import STEPS, RayCluster, RayJob, cannot_run_here, ray_jobs  # noqa: F401 - a fixture

REASON = cannot_run_here() or (None if shutil.which("redis-server") else "needs apt-get install redis-server")
PATIENCE = 900.0
pytestmark = [pytest.mark.campaign, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


@pytest.fixture(scope="module", name="cluster")
def cluster_with_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    cluster = RayCluster(tmp_path_factory.mktemp("ray"), redis=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def alive(cluster: RayCluster) -> list[str]:
    """Names of the nodes that Ray says are alive; none while it does not answer."""
    try:
        answer = json.loads(cluster.fetch(f"http://{cluster.address('head')}:8265/api/v0/nodes"))
    except subprocess.SubprocessError:
        return []
    return sorted(node["node_name"] for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE")


@pytest.fixture(scope="module")
def lost(cluster: RayCluster, jobs: Callable[..., RayJob]) -> SimpleNamespace:
    """A job that loses the head and is submitted again when it is back; the other node is left alone."""
    cluster.join("w1")
    job, seen = jobs("lost"), SimpleNamespace()
    job.submit("checkpoint.every=5")
    latest = job.run / "checkpoints/latest"
    job.wait("a checkpoint", lambda: latest.exists() and latest.read_text() > "step_00000000", PATIENCE)
    cluster.lose("head")
    seen.reached = job.step()
    cluster.start_head()

    job.wait("the other node", lambda: alive(cluster) == ["head", "w1"], PATIENCE)
    job.wait("Ray to miss the driver", lambda: "lost: lost with the head" in job.ask("status").stdout, PATIENCE)
    seen.submitted = job.submit("checkpoint.every=5").stdout
    job.wait("the end", lambda: job.attempts()[-1]["exit_code"] == 0, PATIENCE)
    seen.job = job
    return seen


def test_the_other_node_rejoins_the_restarted_head_and_the_job_resumes(lost: SimpleNamespace) -> None:
    assert "submitted lost" in lost.submitted
    steps = [line["step"] for line in lost.job.lines()]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert 0 < lost.reached < STEPS and lost.job.repeated() <= lost.reached
    first, last = lost.job.attempts()[0], lost.job.attempts()[-1]
    assert first["exit_code"] != 0 and last["exit_code"] == 0
    assert "Resuming" in (lost.job.logs / f"attempt-{last['number']:03d}/rank-00000.log").read_text()
