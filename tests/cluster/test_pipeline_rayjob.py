"""A pipeline submitted within a Ray job, such as a RayJob on Kubernetes: it ends when and as its steps do."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.__main__ import parser
from cluster.pipeline.file import is_pipeline
from tests.cluster.ray_fixture import RayCluster, cannot_run_here, ray_cluster  # noqa: F401 - a fixture
from tests.conftest import ROOT

EXAMPLES = ROOT / "cluster/examples/ray"
PIPELINE = """
[pipeline]
name = "kube"
logs = "{folder}/logs"

[[step]]
name = "waits"
kind = "command"
command = ["sh", "-c", "touch {folder}/began; while [ ! -e {folder}/go ]; do sleep 0.2; done; exit $(cat {folder}/go)"]
"""


def test_the_example_runs_a_shipped_pipeline_on_the_example_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())
    cluster = next(yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text()))
    assert (job["apiVersion"], job["kind"]) == (cluster["apiVersion"], "RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    shell, option, line = shlex.split(job["spec"]["entrypoint"])
    folder, command = line.split(" && exec ")
    assert (shell, option, folder) == ("bash", "-c", "cd /shared/mvlm")  # the disk that kuberay.yaml mounts
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "cluster"]
    args, overrides = parser().parse_known_args(words[3:])
    assert (
        is_pipeline(args.job)
        and args.on == "ray"
        and [word.partition("=")[0] for word in overrides] == ["pipeline.ray_address"]
    )


@pytest.mark.campaign
@pytest.mark.skipif(bool(cannot_run_here()), reason=str(cannot_run_here()))
@pytest.mark.parametrize("code", [0, 2])
def test_submit_within_a_ray_job_ends_as_what_it_submitted(cluster: RayCluster, tmp_path: Path, code: int) -> None:
    path = tmp_path / "kube.toml"
    path.write_text(PIPELINE.format(folder=tmp_path))
    address = f"http://{cluster.address('head')}:8265"
    submit = [sys.executable, "-m", "cluster", "submit", str(path), "--on", "ray", f"pipeline.ray_address={address}"]
    given = ["job", "submit", "--no-wait", "--address", address, "--submission-id", f"outer-{code}", "--"]
    inside = f"cd {ROOT} && PYTHONPATH={ROOT} exec {shlex.join(submit)}"
    assert cluster.on_head("ray.scripts.scripts", *given, "bash", "-c", inside).returncode == 0

    def state() -> str:
        asked = cluster.on_head("ray.scripts.scripts", "job", "status", "--address", address, f"outer-{code}")
        return asked.stdout + asked.stderr

    deadline = time.monotonic() + 900
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline, state()
        time.sleep(0.5)
    assert "RUNNING" in state()
    (tmp_path / "go.partial").write_text(str(code))
    os.replace(tmp_path / "go.partial", tmp_path / "go")
    while "RUNNING" in (said := state()):
        assert time.monotonic() < deadline, said
        time.sleep(5)
    assert ("FAILED" if code else "SUCCEEDED").lower() in said.lower(), said
