"""A preflight on a real Ray cluster of two nodes in namespaces."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import JOB
from tests.conftest import ROOT

SCRIPT = Path(__file__).parent / "ray_cluster.sh"
MISSING = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make namespaces"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@pytest.fixture
def ray_cluster(tmp_path):
    """Runs the script with a verb on a cluster of a head and a worker; what it printed, and its exit code."""
    environment = os.environ | {
        "NODES_NET": "10.233.0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "ray_token"),
    }

    def run(verb, *words):
        log = tmp_path / "script.log"  # daemons inherit it, so it must be no pipe
        command = ["bash", str(SCRIPT), verb, str(tmp_path), *map(str, words)]
        with open(log, "w") as out:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=out, stderr=out, timeout=400).returncode
        return log.read_text(), code

    try:
        assert run("up", 1, 1)[1] == 0
        assert run("worker", "w1", 1)[1] == 0
        yield run
    finally:
        run("down")


def test_it_measures_the_nodes_that_ray_gives(ray_cluster, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(JOB.format(logs=tmp_path / "logs").replace("processes_per_node = 2", "nodes = 2"))
    words = ["-m", "cluster", "preflight", job, "--on", "ray", f"run.dir={tmp_path / 'run'}"]
    said, code = ray_cluster("on", "head", sys.executable, *words)
    assert code == 0 and said.rstrip().endswith("preflight: all is well"), said
    assert "ranks: 2  nodes: 2  rounds of pairs: 1" in said and "GLOO_SOCKET_IFNAME=eth0" in said
    assert {line.split()[0] for line in said.splitlines() if " cpu " in line} == {"head", "w1"}
    assert (tmp_path / "logs/preflight.json").stat().st_mode & 0o777 == 0o600
